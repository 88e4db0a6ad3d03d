"""Archives of strangers: each is refused in a sentence that names it, or its files are right and no other is there."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from lamra.common.archives import Limits
from lamra.scripts.download import extract, extract_pictures

from . import Case

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c6360606000000004000127"
    "0a1c5b0000000049454e44ae426082"
)
CAPTIONS = b'["a", "b", "c", "d", "e"]'
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **more) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def good() -> list[Member]:
    return [member("images", kind=tarfile.DIRTYPE), member("images/0.png", PNG), member("flickr_text.json", CAPTIONS)]


def packed(members: Iterable[Member], end: bytes = bytes(1024), format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of these headers and contents, whether they fit together or not."""
    out = b""
    for info, content in members:
        out += info.tobuf(format, "utf-8", "surrogateescape") + content + bytes(-len(content) % 512)
    return out + end


def chained() -> list[Member]:
    """CVE-2025-4517: behind a path longer than PATH_MAX, realpath no longer sees where a link leads."""
    long, members, path = "d" * 247, [], ""
    for letter in "abcdefghijklmnop":
        members += [member(path + long, kind=tarfile.DIRTYPE)]
        members += [member(path + letter, kind=tarfile.SYMTYPE, linkname=long)]
        path += f"{letter}/"
    members += [member(path + "l" * 254, kind=tarfile.SYMTYPE, linkname="../" * 16)]
    members += [member("escape", kind=tarfile.SYMTYPE, linkname=path + "l" * 254 + "/../..")]
    return [*members, member("escape/escaped.txt", b"gotcha"), *good()]


def sparse() -> bytes:
    """GNU's header of a file of 4 TB that holds nothing."""
    head = bytearray(member("images/1.png", kind=tarfile.GNUTYPE_SPARSE)[0].tobuf(tarfile.GNU_FORMAT))
    head[483:495] = b"\x80" + (4 << 40).to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + packed(good())


def negative() -> bytes:
    """CVE-2025-8194: a size below zero leads back to the header before, for ever."""
    head = bytearray(member("images/1.png")[0].tobuf(tarfile.GNU_FORMAT))
    head[124:136] = b"\xff" * 10 + (-512 & 0xFFFF).to_bytes(2, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return packed([member("a", b"a")], b"") + bytes(head) + bytes(1024)


def bomb(unpacked: int) -> bytes:
    """A gzip of a member of zeros: a thousandth of its size."""
    out, zeros = io.BytesIO(), bytes(1 << 20)
    info = tarfile.TarInfo("readme")
    info.size = unpacked
    with gzip.open(out, "wb", compresslevel=9) as file:
        file.write(info.tobuf())
        for _ in range(unpacked >> 20):
            file.write(zeros)
        file.write(packed(good()))
    return out.getvalue()


def digits() -> bytes:
    """CVE-2024-6232: a regular expression of tarfile takes hours on this."""
    return packed([member("pax", b"1" * 500_000, tarfile.XHDTYPE), *good()])


def headers(count: int) -> bytes:
    """Headers of the same file, each of which replaces the one before."""
    return packed([member("long", b"a" * 400 + b"\0", tarfile.GNUTYPE_LONGNAME)] * count + good())


def pax(**records: str) -> Member:
    content = b""
    for key, value in records.items():
        words = f" {key.replace('_', '.')}={value}\n".encode()
        size = len(words) + 3
        content += b"%03d" % size + words
    return member("pax", content, tarfile.XHDTYPE)


def zipped(*members: tuple[str, bytes], kind: int = 0, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of the captions, the picture and more files, which Unix calls `kind`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in (("images/0.png", PNG), ("flickr_text.json", CAPTIONS), *members):
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.external_attr = kind << 16 if (name, content) in members else 0
            file.writestr(info, content)
    return out.getvalue()


def changed(content: bytes, header: bytes, offset: int, value: bytes) -> bytes:
    """A zip with other bytes behind the last `header`, PK.."""
    place = content.rindex(header) + offset
    return content[:place] + value + content[place + len(value) :]


def unpacked(content: bytes | Callable[[], bytes], folder: Path, limits: Limits) -> None:
    """Unpack as LamRA_Eval's archive: right, or refused with nothing left; never anything beside it."""
    archive = folder / "flickr.tar.gz"
    archive.write_bytes(content() if callable(content) else content)
    try:
        extract(archive, folder / "out" / "flickr", "images", "flickr_text.json", limits)
    except ValueError:
        assert not list((folder / "out").iterdir())
        raise
    finally:
        assert sorted(os.listdir(folder)) == ["flickr.tar.gz", "out"]
        assert not [path for path in folder.rglob("*") if path.is_symlink() or "escaped" in path.name]
    assert (folder / "out/flickr/images/0.png").read_bytes() == PNG
    assert len(list((folder / "out/flickr").rglob("*"))) == 3


def parts(contents: list[bytes], folder: Path) -> None:
    """Unpack as M-BEIR's pictures, which come in parts."""
    paths = [folder / f"part-{number}" for number in range(len(contents))]
    for path, content in zip(paths, contents):
        path.write_bytes(content)
    lost = extract_pictures(paths, folder / "out", None, ["mbeir_images/a.png", "mbeir_images/b.png"], Limits())
    assert lost == ["mbeir_images/b.png"] and (folder / "out/mbeir_images/a.png").read_bytes() == PNG
    assert [path.name for path in (folder / "out").rglob("*")] == ["mbeir_images", "a.png"]


def started(run: Callable[[Path], None], folder: Path) -> None:
    (folder / "out").mkdir()
    run(folder)


NAMES = ("../escaped", "images/../../escaped", "/tmp/escaped", "//tmp/escaped", "./../escaped", "images/..", "..")
KINDS = {
    "symlink": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "FIFO": tarfile.FIFOTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "contiguous file": tarfile.CONTTYPE,
    "volume header": b"V",
}
CENTRAL = b"PK\x01\x02"  # begins an entry of a zip's directory
REFUSED, DAMAGED = "flickr.tar.gz is refused, it may be malicious", "flickr.tar.gz is damaged"
SOUND, MBEIR = (
    packed(good()),
    packed([member("./mbeir_images", kind=tarfile.DIRTYPE), member("./mbeir_images/a.png", PNG)]),
)
ZIPPED = gzip.compress(SOUND)
FLIPPED = bytearray(ZIPPED)
FLIPPED[len(FLIPPED) // 2] ^= 0xFF
# name -> content, what the sentence says (None: right), limits
TABLE: dict[str, tuple] = {
    "sound": (SOUND, None),
    "gzip": (ZIPPED, None),
    "in two streams of gzip": (gzip.compress(SOUND[:700]) + gzip.compress(SOUND[700:]), None),
    "below a folder": (packed([member(f"flickr/{info.name}", content) for info, content in good()[1:]]), None),
    "GNU's format": (packed(good(), format=tarfile.GNU_FORMAT), None),
    "a file twice": (packed([member("images/0.png", b"old"), *good()]), None),
    "50 MB of zeros": (lambda: bomb(50 << 20), None),
    **{f"name {name}": (packed([member(name, b"gotcha"), *good()]), REFUSED) for name in NAMES},
    **{
        f"{what} to {link}": (packed([member("images/1.png", kind=kind, linkname=link), *good()]), REFUSED)
        for what, kind in KINDS.items()
        for link in ("0.png", "/etc/passwd", "../../..")
    },
    "long folders and short links": (lambda: packed(chained()), REFUSED),
    "a file through a link": (
        packed([member("x", kind=tarfile.SYMTYPE, linkname=".."), member("x/escaped", b"g"), *good()]), REFUSED,
    ),
    "sparse, 4 TB": (sparse, REFUSED),
    "sparse, in a pax header": (
        packed([pax(GNU_sparse_major="1", GNU_sparse_minor="0", GNU_sparse_realsize="4000000000000"),
                member("images/1.png", b"0\n" + bytes(510)), *good()]), REFUSED,
    ),
    "1 GB in 1 MB": (lambda: bomb(1 << 30), REFUSED),
    "limit of files": (SOUND, "holds more than 2 files", Limits(files=2)),
    "limit of size": (SOUND, "unpacks to more than 1e-06 GB", Limits(gigabytes=1e-6)),
    "limit of ratio": (lambda: bomb(100 << 20), "unpacks to more than 9 times its size", Limits(ratio=9)),
    "ratio allowed": (lambda: bomb(100 << 20), None, Limits(ratio=2000)),
    "negative size": (negative, DAMAGED),
    "digits": (digits, DAMAGED),
    "a name of 20 MB": (lambda: packed([member("n", b"a" * 20_000_000, tarfile.GNUTYPE_LONGNAME), *good()]), DAMAGED),
    "3,000 headers of a file": (lambda: headers(3000), DAMAGED),
    "NUL in a name": (packed([pax(path="images/a\0b.png"), member("x", b"gotcha"), *good()]), REFUSED),
    "size is no number": (packed([pax(GNU_sparse_size="many"), member("images/1.png"), *good()]), DAMAGED),
    "map is no number": (packed([pax(GNU_sparse_map="a,b"), member("images/1.png"), *good()]), DAMAGED),
    "name of 300 letters": (packed([pax(path="images/" + "a" * 300), member("x", b"g"), *good()]), "cannot be written"),
    "a file where a folder stands": (packed([member("images/0.png/1.png", PNG), *good()]), "cannot be written"),
    "a folder where a file stands": (packed([*good(), member("images/0.png/1.png", PNG)]), "cannot be written"),
    "name is empty": (packed([member("", b"gotcha"), *good()]), DAMAGED),
    "name is a dot": (packed([member(".", b"gotcha"), *good()]), DAMAGED),
    "empty": (b"", DAMAGED),
    "text": (b"<html>not found</html>" * 100, DAMAGED),
    "zip: head alone": (b"PK\x03\x04" + bytes(2000), DAMAGED),
    "zip": (zipped(), None),
    "zip: stored": (zipped(method=zipfile.ZIP_STORED), None),
    "zip: a folder": (zipped(("images/", b"")), None),
    "zip: written on Unix": (zipped(("readme", b"a"), kind=stat.S_IFREG), None),
    **{f"zip: name {name}": (zipped((name, b"gotcha")), REFUSED) for name in NAMES},
    "zip: symlink": (zipped(("images/1.png", b"/etc/passwd"), kind=stat.S_IFLNK), REFUSED),
    "zip: FIFO": (zipped(("images/1.png", b""), kind=stat.S_IFIFO), REFUSED),
    "zip: encrypted": (changed(zipped(), CENTRAL, 8, b"\x01"), DAMAGED),
    "zip: bzip2": (zipped(method=zipfile.ZIP_BZIP2), DAMAGED),
    "zip: 70 MB in 70 KB": (lambda: zipped(("readme", bytes(70 << 20))), REFUSED),
    "zip: limit of files": (zipped(), "holds more than 1 files", Limits(files=1)),
    "zip: limit of size": (zipped(), "unpacks to more than 1e-08 GB", Limits(gigabytes=1e-8)),
    "zip: states less": (changed(zipped(), CENTRAL, 24, (5).to_bytes(4, "little")), DAMAGED),
    "zip: states more": (changed(zipped(), CENTRAL, 24, (999).to_bytes(4, "little")), DAMAGED),
    "zip: another checksum": (changed(zipped(), CENTRAL, 16, b"1234"), DAMAGED),
    "zip: a directory that begins elsewhere": (changed(zipped(), b"PK\x05\x06", 16, b"\xff\xff\xff\x7f"), DAMAGED),
    "zip: cut": (zipped()[:-30], DAMAGED),
    "zeros": (bytes(10240), "holds 0 of images"),
    "cut in a file": (SOUND[:1100], DAMAGED),
    "cut in a header": (SOUND[:700], DAMAGED),
    "without its end": (SOUND[:-1024], DAMAGED),
    "gzip cut": (ZIPPED[:-30], DAMAGED),
    "gzip without its checksum": (ZIPPED[:-8], DAMAGED),
    "gzip with another checksum": (ZIPPED[:-8] + b"12345678", DAMAGED),
    "gzip with a bit flipped": (bytes(FLIPPED), DAMAGED),
    "gzip of nothing": (gzip.compress(b""), DAMAGED),
    "gzip and something behind": (ZIPPED + b"behind", DAMAGED),
    "a header is damaged": (SOUND[:1536] + b"x" * 512 + SOUND[2048:], DAMAGED),
    "something behind the end": (SOUND + b"x" * 512, DAMAGED),
    "no pictures": (packed([member("flickr_text.json", CAPTIONS)]), "holds 0 of images"),
    "two of the captions": (packed([*good(), member("b/flickr_text.json", CAPTIONS)]), "holds 2 of flickr_text.json"),
    "captions are a folder": (packed([*good()[:2], member("flickr_text.json/x", b"")]), "flickr_text.json"),
}  # fmt: skip
CASES = [
    Case(name, partial(started, partial(unpacked, content, limits=limits[0] if limits else Limits())), refused)
    for name, (content, refused, *limits) in TABLE.items()
]
CASES += [
    Case(f"M-BEIR: {name}", partial(started, partial(parts, contents)), refused)
    for name, contents, refused in (
        ("one part", [MBEIR], None),
        ("three parts", [MBEIR[:700], MBEIR[700:1000], MBEIR[1000:]], None),
        ("an empty part", [MBEIR[:700], b"", MBEIR[700:]], None),
        ("gzip in parts", [gzip.compress(MBEIR)[:50], gzip.compress(MBEIR)[50:]], None),
        ("a part is lost", [MBEIR[:700], MBEIR[1000:]], "part-0 and the other parts are damaged"),
        ("beside the pictures", [packed([member("query/x", b"g")])], "part-0 is refused"),
        (
            "a link",
            [packed([member("mbeir_images/a.png", kind=tarfile.SYMTYPE, linkname="/etc")])],
            "part-0 is refused",
        ),
        ("above", [packed([member("mbeir_images/../../escaped", b"g")])], "part-0 is refused"),
    )
]
