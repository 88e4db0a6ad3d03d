"""Picture files of all kinds: each is shown as it is, or refused in a sentence that names it."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import unicodedata
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from faulty_pictures import FAULTY, png
from PIL import EpsImagePlugin, Image, features

from lamra.collators.pictures import MAX_PIXELS, open_image, picture_size

from . import Case

GREY = np.linspace(0, 65535, 40 * 30).reshape(40, 30).astype(np.uint16)
PICTURE = Image.fromarray(np.dstack([GREY >> 8] * 3).astype(np.uint8))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(hacked) (w) file closefile\nshowpage\n"
ROTATED = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF's orientation -> Image.Transpose that undoes it


def saved(kind: str, image: Image.Image = PICTURE, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def shown(content: bytes, folder: Path, name: str = "picture.jpg", tolerance: float = 0) -> None:
    """Header and pixels are read, from a file of this name, and are those of PICTURE."""
    (folder / name).write_bytes(content)
    assert picture_size(folder / name) == PICTURE.size
    found = np.asarray(open_image(folder / name)).astype(int)
    assert found.shape == (40, 30, 3) and abs(found - np.asarray(PICTURE)).max() <= tolerance


def opened(content: bytes, folder: Path) -> None:
    (folder / "picture.jpg").write_bytes(content)
    size = picture_size(folder / "picture.jpg")
    image = open_image(folder / "picture.jpg")
    assert image.mode == "RGB" and image.size == size


def header(content: bytes, folder: Path) -> None:
    (folder / "picture.jpg").write_bytes(content)
    picture_size(folder / "picture.jpg")


def ghostscript(folder: Path) -> None:
    """The program that Pillow starts for an EPS must not be started."""
    EpsImagePlugin.has_ghostscript = lambda: True
    EpsImagePlugin.gs_binary = "gs"
    subprocess.check_call = lambda *_, **__: (folder / "started").write_text("gs")
    try:
        opened(EPS, folder)
    finally:
        assert not (folder / "started").exists()


def made(make: Callable[[Path], object], folder: Path) -> None:
    make(folder / "picture.jpg")
    open_image(folder / "picture.jpg")


def size_only(make: Callable[[Path], object], folder: Path) -> None:
    make(folder / "picture.jpg")
    picture_size(folder / "picture.jpg")


def named(stored: str | bytes, asked: str, folder: Path) -> None:
    """A file whose name is spelt otherwise than it is asked for."""
    stored = os.fsencode(stored) if isinstance(stored, str) else stored
    path = os.path.join(os.fsencode(folder), stored)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(saved("PNG"))
    open_image(folder / (asked or os.fsdecode(stored)))


def limited(value: str, width: int, height: int, folder: Path) -> None:
    os.environ[MAX_PIXELS] = value
    (folder / "picture.jpg").write_bytes(saved("PNG", Image.new("1", (width, height))))
    assert open_image(folder / "picture.jpg").size == (width, height)


def turned(orientation: int, kind: str, folder: Path) -> None:
    """A picture that a camera stored turned: as it is stored, or upright; once, however often it is opened."""
    stored = PICTURE if (undo := ROTATED[orientation]) is None else PICTURE.transpose(ROTATED_BACK.get(undo, undo))
    lossless = {"WEBP": {"lossless": True}}.get(kind, {})
    stored.save(folder / "picture.jpg", kind, exif=exif(orientation), **lossless)
    always = kind == "TIFF"  # Pillow turns it in any case
    assert open_image(folder / "picture.jpg").size == (PICTURE if always else stored).size
    upright = open_image(folder / "picture.jpg", exif_rotation=True)
    assert upright.size == PICTURE.size and open_image(upright, exif_rotation=True).size == PICTURE.size
    assert abs(np.asarray(upright).astype(int) - np.asarray(PICTURE)).max() <= (30 if kind == "JPEG" else 0)


ROTATED_BACK = {4: 2, 2: 4}  # a quarter to the left undoes a quarter to the right
CANNOT = "picture.jpg cannot be read"
NO_FORMAT = f"{CANNOT} (it is none of JPEG, PNG, WEBP, BMP, GIF, TIFF, MPO, AVIF)"


def chunked(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


HEAD = (b"IHDR", struct.pack(">IIBBBBB", 30, 40, 8, 2, 0, 0, 0))
DATA = (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(PICTURE))))
END = (b"IEND", b"")
JPEG, PNG, GIF = saved("JPEG", quality=100, subsampling=0), saved("PNG"), saved("GIF")
COMPOSED = unicodedata.normalize("NFC", "é한.png")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def cases() -> list[Case]:
    table: list[Case] = []

    def add(name: str, run: Callable, refused: str | None) -> None:
        table.append(Case(name, run, refused))

    for kind, tolerance in (("JPEG", 8), ("PNG", 0), ("BMP", 0), ("GIF", 2), ("TIFF", 0), ("MPO", 60)):
        add(f"{kind} named .jpg", partial(shown, saved(kind, **({"quality": 100} if kind in ("JPEG", "MPO") else {})),
            tolerance=tolerance), None)  # fmt: skip
    add("WEBP", partial(shown, saved("WEBP", lossless=True)), None)
    if features.check("avif"):
        add("AVIF", partial(shown, saved("AVIF", quality=100), tolerance=8), None)
    for kind in ("EPS", "PDF", "PPM", "TGA", "ICO", "JPEG2000", "DDS", "PCX", "SGI", "IM", "MSP", "XBM", "ICNS"):
        image = PICTURE.convert("1") if kind in ("MSP", "XBM") else PICTURE
        add(f"{kind} named .jpg", partial(opened, saved(kind, image)), NO_FORMAT)
    add("EPS starts no Ghostscript", ghostscript, NO_FORMAT)
    for name, content in FAULTY.items():
        add(f"faulty: {name}", partial(opened, content), CANNOT)
    for name, content in (
        ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("HTML", b"<html>404</html>"),
        ("LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        ("a pickle", b"\x80\x04."),
        ("zip", b"PK\x03\x04" + bytes(99)),
        ("RAR", b"Rar!\x1a\x07\x00" + bytes(99)),
        ("MP4", b"\0\0\0\x20ftypisom" + bytes(99)),
        ("HEIC", b"\0\0\0\x20ftypheic" + bytes(99)),
        ("WMF", b"\xd7\xcd\xc6\x9a" + bytes(99)),
        ("FITS", b"SIMPLE  =                    T" + bytes(2850)),
        ("zeros", bytes(4000)),
    ):
        add(f"{name} named .jpg", partial(opened, content), CANNOT)
    for kind, content in (("JPEG", JPEG), ("PNG", PNG), ("GIF", GIF)):
        for share in (0.02, 0.1, 0.5, 0.9):
            add(f"{kind}, {share:.0%} of it", partial(opened, content[: int(len(content) * share)]), CANNOT)
    for name, chunks, refused in (
        ("sound", (HEAD, DATA, END), None),
        ("without its pixels", (HEAD, END), CANNOT),
        ("without its header", (DATA, END), CANNOT),
        ("of a negative size", ((b"IHDR", struct.pack(">IIBBBBB", 1 << 31, 1, 8, 2, 0, 0, 0)), DATA, END), CANNOT),
        ("of an unknown mode", ((b"IHDR", struct.pack(">IIBBBBB", 30, 40, 3, 7, 0, 0, 0)), DATA, END), CANNOT),
        ("with a text of 50 MB", (HEAD, (b"zTXt", b"a\0\0" + zlib.compress(bytes(50 << 20))), DATA, END), CANNOT),
        ("with a damaged profile", (HEAD, (b"iCCP", b"a\0\0broken"), DATA, END), None),
        ("with damaged EXIF", (HEAD, (b"eXIf", b"broken"), DATA, END), None),
        ("with a damaged animation", (HEAD, (b"acTL", b"\0"), DATA, END), CANNOT),
    ):
        run = partial(shown, chunked(*chunks)) if refused is None else partial(opened, chunked(*chunks))
        add(f"PNG {name}", run, refused)
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        kind = "TIFF" if mode == "CMYK" else "PNG"
        image = Image.fromarray(GREY) if mode == "I;16" else PICTURE.convert(mode)
        tolerance = {"1": 255, "P": 60, "CMYK": 1}.get(mode, 0)
        add(f"mode {mode}", partial(shown, saved(kind, image), tolerance=tolerance), None)
    transparent = PICTURE.convert("P")
    add("palette with transparency", partial(shown, saved("PNG", transparent, transparency=bytes(range(256))),
        tolerance=60), None)  # fmt: skip
    add("16-bit grey as 32", partial(shown, saved("TIFF", Image.fromarray(GREY.astype(np.int32)))), None)
    for name, pixels in (
        ("32-bit grey of 31 bits", GREY.astype(np.int32) << 14),
        ("32-bit grey below zero", GREY.astype(np.int32) - 100),
        ("8-bit grey as 32", (GREY >> 8).astype(np.int32)),
        ("floating point", GREY.astype(np.float32) / 65535),
        ("not a number", np.full((40, 30), np.nan, np.float32)),
    ):
        add(name, partial(opened, saved("TIFF", Image.fromarray(pixels))), CANNOT)
    for width, height in ((20_000, 20_000), (13_000, 13_000), (1 << 30, 1 << 30)):
        add(f"{width} x {height}", partial(opened, png(width, height)), f"raise the variable {MAX_PIXELS}")
        add(f"{width} x {height}, its header", partial(header, png(width, height)), f"raise the variable {MAX_PIXELS}")
    add("GIF of 65535 x 65535", partial(opened, b"GIF89a\xff\xff\xff\xff\0\0\0" + GIF[13:]), CANNOT)
    for value, width, height, refused in (
        ("100", 10, 10, None),
        ("99", 10, 10, f"10 x 10 pixels, more than 99): make it smaller, or raise the variable {MAX_PIXELS}"),
        ("200000000", 10_000, 10_000, None),
        *((value, 2, 2, MAX_PIXELS) for value in ("0", "-1", "1e9", "many", "9" * 5000, "٣", " ", "1_000")),
        ("", 2, 2, None),
    ):
        add(f"limit {value[:20]!r}", partial(limited, value, width, height), refused)
    for name, run, refused in (
        ("a folder", partial(made, Path.mkdir), f"{CANNOT} (it is no file)"),
        ("a FIFO", partial(made, os.mkfifo), f"{CANNOT} (it is no file)"),
        ("a FIFO, its header", partial(size_only, os.mkfifo), f"{CANNOT} (it is no file)"),
        ("a device", partial(made, lambda path: path.symlink_to("/dev/zero")), f"{CANNOT} (it is no file)"),
        ("not there", partial(made, lambda path: None), "picture.jpg does not exist"),
        ("a link to nothing", partial(made, lambda path: path.symlink_to("gone")), "picture.jpg does not exist"),
        ("a link to itself", partial(made, lambda path: path.symlink_to(path)), "picture.jpg"),
        ("below a file", lambda folder: open_image(Path(__file__) / "picture.jpg"), "picture.jpg"),
        ("a name of 300 letters", lambda folder: open_image(folder / ("a" * 300)), "cannot be read"),
        ("NUL in its name", lambda folder: open_image(folder / "a\0b"), "cannot be read"),
        ("composed for decomposed", partial(named, DECOMPOSED, COMPOSED), None),
        ("decomposed for composed", partial(named, COMPOSED, DECOMPOSED), None),
        ("in a folder so spelt", partial(named, f"{DECOMPOSED}/{COMPOSED}", f"{COMPOSED}/{DECOMPOSED}"), None),
        ("name that is no UTF-8", partial(named, b"\xff\xfe.png", ""), None),
        ("name with a line feed", partial(named, "a\nb.png", ""), None),
        ("a comma and blanks", partial(named, " a, b .png", ""), None),
    ):
        add(name, run, refused)
    for orientation in ROTATED:
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            add(f"{kind} of orientation {orientation}", partial(turned, orientation, kind), None)
    return table


CASES = cases()
