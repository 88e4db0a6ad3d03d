"""Archives of strangers, tar (plain or with gzip) and zip: the content of their regular files, and nothing else.

No link, device or sparse file is made, no name leads elsewhere, and what a small archive can become has limits.
"""

from __future__ import annotations

import errno
import gzip
import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from lamra.common.errors import UserError
from lamra.common.files import MIB

T = TypeVar("T")
GZIP = b"\x1f\x8b"
ZIP, ENCRYPTED = b"PK\x03\x04", 1
BLOCK = MIB  # that is read at a time
LARGEST_HEADER = MIB  # tarfile reads the names and comments of a member as a whole
DIGITS = re.compile(rb"\d{100}")  # on a long run of these, tarfile of Python before 3.11.10 and 3.12.6 takes hours
BROKEN: tuple[type[Exception], ...] = (
    *(tarfile.TarError, zipfile.BadZipFile, struct.error, zlib.error, EOFError, NotImplementedError),
    *(ValueError, OverflowError, TypeError, LookupError, RecursionError),
)
SMALL = 64 * MIB  # an archive may always unpack to this


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to. M-BEIR's, the largest here, has a million files and 169 GB.

    Attributes:
        files: in it, folders too.
        gigabytes: of all together, of 10**9 bytes.
        ratio: of what it unpacks to, to its own size; pictures have 1, text has 4 to 10, a gzip bomb has 1000.
        way_out: for the sentence about a limit.
    """

    files: int = 10_000_000
    gigabytes: float = 2000
    ratio: float = 50
    way_out: str = "unpack it yourself if you trust it"


def unpack(paths: Sequence[Path], place: Callable[[str, int], Path | None], limits: Limits = Limits()) -> None:
    """Write the regular files of an archive, each whole or not at all; a file that is there is replaced.

    Args:
        paths: of the archive, or of a tar's parts in order; they are never joined on disk.
        place: name (relative, "a/b.jpg") and size of a file to where it goes; None passes it over.

    Raises:
        UserError: the archive is damaged, exceeds a limit, or holds what is no regular file and no folder, or a name
            that leads elsewhere: it may be malicious.
        OSError: a file cannot be read or written.
    """
    for name, size, content in regular_files(paths, limits):
        target = place(name, size)
        if target is None:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name[:30]}.incomplete")
        with unfinished.open("wb") as file:
            for block in content:
                file.write(block)
        unfinished.replace(target)


def regular_files(paths: Sequence[Path], limits: Limits) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    """(name, size, content in blocks) of each regular file; the content is to be read before the next is taken."""
    with paths[0].open("rb") as file:
        if file.read(len(ZIP)) == ZIP:
            file.seek(0)
            yield from _zipped(file, _Archive(paths, limits))
            return
    archive = _Bytes(paths, limits)
    with archive:
        tar = archive.parsed(lambda: tarfile.TarFile(fileobj=archive))
        count = 0
        while member := archive.parsed(tar.next):
            tar.members.clear()  # type: ignore[attr-defined] # it would keep all of a million
            count += 1
            archive.check(count, archive.position)
            name = _checked(member, archive)
            if name is not None:
                yield name, member.size, archive.blocks(member.offset_data, member.size)
        archive.check_end()


def _checked(member: tarfile.TarInfo, archive: _Archive) -> str | None:
    """The relative name of a regular file; None for a folder."""
    regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    name = archive.relative(member.name, is_folder=member.isdir(), is_regular=regular)
    if name == "" or member.size < 0:
        raise archive.damage(f"a file {member.name!r} of {member.size} bytes")
    return name


def _zipped(file: IO[bytes], archive: _Archive) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    """As regular_files. zipfile reads no more of a file than the size that the directory states, and checks its CRC."""
    with archive.parsed(lambda: zipfile.ZipFile(file)) as opened:
        members = opened.infolist()
        archive.check(len(members), sum(member.file_size for member in members))
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)  # what Unix stored; 0 where another system wrote it
            name = archive.relative(member.filename, is_folder=member.is_dir(), is_regular=kind in (0, stat.S_IFREG))
            if name:
                yield name, member.file_size, _zipped_blocks(opened, member, archive)


def _zipped_blocks(opened: zipfile.ZipFile, member: zipfile.ZipInfo, archive: _Archive) -> Iterator[bytes]:
    if member.flag_bits & ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise archive.damage(f"{member.filename!r} is encrypted, or compressed as method {member.compress_type}")
    left = member.file_size
    with archive.parsed(lambda: opened.open(member)) as content:
        while block := archive.parsed(lambda: content.read(BLOCK)):
            left -= len(block)
            yield block
    if left:
        raise archive.damage("it ends within a file")


class _Archive:
    """The names and limits of an archive, and what is said of one that is wrong."""

    def __init__(self, paths: Sequence[Path], limits: Limits):
        self.names = f"{paths[0]} and the other parts are" if len(paths) > 1 else f"{paths[0]} is"
        self.limits, self.packed = limits, sum(path.stat().st_size for path in paths)

    def relative(self, name: str, *, is_folder: bool, is_regular: bool) -> str | None:
        """A file's name, "a/b.jpg"; None for a folder."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\0" in name:
            raise self.refusal(f"it holds {name!r}, which leads out of its folder")
        if is_folder:
            return None
        if not is_regular:
            raise self.refusal(f"it holds {name!r}, which is no regular file and no folder")
        return "/".join(parts)

    def check(self, files: int, unpacked: int) -> None:
        """Refuse more than the limits allow."""
        if files > self.limits.files:
            raise self.excess(f"holds more than {self.limits.files} files")
        if unpacked > self.limits.gigabytes * 10**9:
            raise self.excess(f"unpacks to more than {self.limits.gigabytes:g} GB")
        if unpacked > max(SMALL, self.limits.ratio * self.packed):
            raise self.excess(f"unpacks to more than {self.limits.ratio:g} times its size")

    def damage(self, reason: object) -> UserError:
        return UserError(f"{self.names} damaged ({reason}): delete it, and download or write it again")

    def refusal(self, reason: str) -> UserError:
        return UserError(f"{self.names} refused, it may be malicious: {reason}")

    def excess(self, reason: str) -> UserError:
        return self.refusal(f"it {reason}; {self.limits.way_out}")

    def parsed(self, step: Callable[[], T]) -> T:
        """A step of tarfile or zipfile, which raise nearly anything on a hostile header."""
        try:
            return step()
        except UserError:
            raise
        except BROKEN as error:
            raise self.damage(error) from None
        except OSError as error:
            if error.errno == errno.EINVAL:  # zipfile seeks to before the start
                raise self.damage(error) from None
            raise


class _Bytes(io.RawIOBase, _Archive):
    """What a tar unpacks to, as a file that is read forward and counted."""

    def __init__(self, paths: Sequence[Path], limits: Limits):
        _Archive.__init__(self, paths, limits)
        joined = io.BufferedReader(_Joined(paths), BLOCK)
        zipped = joined.peek(2)[:2] == GZIP
        self.file = gzip.GzipFile(fileobj=joined) if zipped else joined
        self.position, self.last = 0, b""

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_HEADER:
            raise self.damage(f"a header of {size} bytes")
        content = self._next(size)
        if size > tarfile.BLOCKSIZE and DIGITS.search(content):
            raise self.damage("a header holds a number of a hundred digits")
        return content

    def _next(self, size: int) -> bytes:
        try:
            content = self.file.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.damage(error) from None
        self.position += len(content)
        self.last = content
        self.check(0, self.position)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Forward only: a header with a negative size would lead tarfile round for ever."""
        if whence != io.SEEK_SET or offset < self.position:
            raise self.damage("a header points back")
        while self.position < offset and self._next(min(BLOCK, offset - self.position)):
            pass
        return self.position

    def blocks(self, start: int, size: int) -> Iterator[bytes]:
        self.seek(start)
        while left := start + size - self.position:
            if not (block := self._next(min(BLOCK, left))):
                raise self.damage("it ends within a file")
            yield block

    def check_end(self) -> None:
        """Read on to where gzip has its checksum; tarfile takes a damaged header for the end of the archive."""
        if self.last != bytes(tarfile.BLOCKSIZE):
            raise self.damage("its end is missing, or a header is damaged")
        while block := self._next(BLOCK):
            if block.strip(b"\0"):
                raise self.damage("something stands behind its end")


class _Joined(io.RawIOBase):
    """Files read one after the other as if they were one."""

    def __init__(self, paths: Iterable[Path]):
        self._files = (path.open("rb") for path in paths)
        self._file = next(self._files, None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._file is not None:
            if count := self._file.readinto(buffer):
                return count
            self._file.close()
            self._file = next(self._files, None)
        return 0
