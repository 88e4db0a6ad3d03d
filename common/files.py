"""Files: read with names for what is wrong, written as a whole or not at all.

After a kill or on a full disk the older file still stands.
"""

from __future__ import annotations

import csv
import errno
import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import time
import unicodedata
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from safetensors import SafetensorError

from lamra.common.errors import ItemError, UserError
from lamra.common.processes import Owner

MIB = 2**20
PATIENCE = 30  # seconds that a network file system may take to show a file
LONGEST_LINE = 64 * MIB
GZIP = b"\x1f\x8b"
ENCODINGS = (  # UTF-32's mark begins like UTF-16's
    *((mark, "utf-32") for mark in (BOM_UTF32_LE, BOM_UTF32_BE)),
    *((mark, "utf-16") for mark in (BOM_UTF16_LE, BOM_UTF16_BE)),
)
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # as a json text spells it, half of a letter or whole
DISK_ERRORS = (OSError, RuntimeError, SafetensorError)
# What safetensors and torch.save say where Python has an error number.
NO_SPACE = re.compile(
    r"os error (27|28|122)\b|No space left|File too large|PytorchStreamWriter failed|inline_container.*unexpected pos"
    r"|iostream error"
)
_numbers = itertools.count()


@contextmanager
def whole_file(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a new file ("w" in UTF-8, or "wb") that takes its name, and an older one's place, at the end of the block.

    If the block raises, nothing has changed. Folders above the file are made.

    Raises:
        OSError: it cannot be written; `filename` is always set.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(path)
    try:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a failed write names none
        raise


def unfinished_name(path: Path) -> Path:
    """A name beside `path` that no other process has; what a process that ended left under such names is deleted."""
    begin = f".{path.name[:30]}."
    for left in path.parent.glob(f"{glob.escape(begin)}*.unfinished"):
        if (owner := Owner.parse(left.name[len(begin) :].split("+")[0])) and owner.ended():
            remove(left)
    return path.with_name(f"{begin}{Owner.this()}+{next(_numbers)}.unfinished")


def remove(path: Path) -> None:
    """Delete a file or a folder; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def appears(path: Path) -> bool:
    """Whether another machine's file is there, or comes within the time that a network file system may take."""
    until = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def is_disk_full(error: Exception) -> bool:
    """Whether an error of DISK_ERRORS says that a disk, a quota or a limit on files is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return bool(NO_SPACE.search(str(error)))


def sha256(path: str | Path) -> str:
    """Of a file's content."""
    return digest(path, "sha256")


def digest(path: str | Path, algorithm: str) -> str:
    """Of a file's content, by an algorithm of hashlib."""
    found = hashlib.new(algorithm, usedforsecurity=False)  # where FIPS rules, MD5 is refused for anything else
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def path_inside(root: str | Path, name: str | Path) -> Path:
    """`name` below the folder `root`; an absolute path counts only if it lies there.

    What counts is the path as it is written: a symbolic link, `root` itself or one below it, may lead elsewhere,
    because whoever laid out the data folder put it there.

    Raises:
        ItemError: the path leaves `root`.
    """
    top = Path(os.path.abspath(root))
    path = Path(os.path.normpath(top / name))
    if ".." in Path(name).parts or top not in path.parents:
        raise ItemError(f"the path {name} leaves {root}: give one inside that folder")
    return Path(root, name)


def is_plainly_inside(name: str) -> bool:
    """Whether a path stays below whatever folder, by its spelling alone, which is that of pathlib: no .., no //.

    For millions of names: it takes a fiftieth of path_inside's time.
    """
    return {"", ".", ".."}.isdisjoint(name.split("/"))


def as_on_disk(path: Path) -> Path:
    """The path, or where it is not there, the path of the same letters that is: macOS writes é as e and an accent."""
    if path.exists() or path.parent == path:
        return path
    parent = as_on_disk(path.parent)
    spellings = (parent / name for name in (path.name, *(unicodedata.normalize(f, path.name) for f in ("NFC", "NFD"))))
    return next((spelling for spelling in spellings if spelling.exists()), path)


class Row(dict):
    """An object of a json file or a row of a csv. It knows where it stands: a missing field is told with file and line.

    Attributes:
        location: "items.jsonl line 3".
        lines: how many it goes over.
    """

    def __init__(self, location: str, value: Any, lines: int = 1):
        if not isinstance(value, dict):
            raise UserError(f"{location} is not an object but {type(value).__name__}")
        super().__init__(value)
        self.location, self.lines = location, lines

    def __missing__(self, name: str) -> NoReturn:
        raise UserError(f'{self.location} lacks "{name}": it has {", ".join(self) or "nothing"}')


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a text file with their ends, in UTF-8 or with a byte-order mark in UTF-16 or -32, also in gzip.

    A line ends at a line feed and nowhere else: U+2028, U+0085 and a lone carriage return are letters.

    Raises:
        UserError: it is no file, no text in such an encoding, a damaged gzip, or a line has more than LONGEST_LINE
            bytes; names file and line.
    """
    if not os.path.isfile(path) and os.path.exists(path):  # a FIFO would be waited for
        raise UserError(f"{path} is not a file: give one")
    number = 0
    try:
        with open(path, "rb") as plain:
            file: Any = gzip.GzipFile(fileobj=plain) if plain.peek(2).startswith(GZIP) else plain
            begin = file.peek(4)
            if encoding := next((name for mark, name in ENCODINGS if begin.startswith(mark)), None):
                file = io.BytesIO(file.read().decode(encoding).encode())
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise UserError(f"{path} line {number} has more than {LONGEST_LINE} bytes: is it a text file?")
                yield (line if number > 1 else line.removeprefix(BOM_UTF8)).decode("utf-8")
    except UnicodeError as error:
        reason = f"byte 0x{error.object[error.start]:02x}" if isinstance(error, UnicodeDecodeError) else str(error)
        raise UserError(f"{path} line {number or 1} is not UTF-8 ({reason}): save the file as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}): copy or download it again") from None


def parse_json(text: str, location: str) -> Any:
    """The value of a json text.

    Raises:
        UserError: it is none, or has NaN, Infinity or half of a letter (a lone surrogate, which no tokenizer takes);
            begins with `location`.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{location} is not json ({error}): write it again, or give another file") from None
    if SURROGATE.search(text):
        require_whole_letters(json.dumps(value, ensure_ascii=False), location)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no value of json")


def require_whole_letters(text: str, location: str) -> None:
    """Refuse half of a letter, a lone surrogate; a json text can spell one.

    Raises:
        UserError: `text` has one; begins with `location`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise UserError(f"{location} has {half}, half of a letter (a lone surrogate): write the letter whole") from None


def read_json(path: str | Path) -> Any:
    """The value of a json file; raises as read_lines and parse_json."""
    return parse_json("".join(read_lines(path)), str(path))


def read_jsonl(path: str | Path) -> Iterator[Row]:
    """The objects of a jsonl file, in order; blank lines are passed over.

    Raises:
        UserError: as read_lines; or a line is no json object; names file and line.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield Row(location := f"{path} line {number}", parse_json(line, location))


def read_csv(path: str | Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a csv with a header, in order, every value a string; blank lines are passed over.

    A row may lack columns at its end. A text in quotes may go over several lines, as Row.lines says.

    Raises:
        UserError: as read_lines; or one of `columns` is not in the header, a row has more columns than the header, or a
            quote is not closed, or swallows lines that look like rows of their own; names file and line.
    """
    csv.field_size_limit(LONGEST_LINE)
    taken: list[str] = []  # lines of the row that is read
    rows = csv.reader(line for line in read_lines(path) if not taken.append(line))  # type: ignore[func-returns-value]
    header: list[str] = []
    while True:
        taken.clear()
        first = rows.line_num + 1
        location = f"{path} line {first}"
        try:
            row = next(rows, None)
            if row is None:
                break
            if sum(line.count('"') for line in taken) % 2:
                _require_closed_quote(taken, location)
        except csv.Error as error:
            raise UserError(f"{location} cannot be read as a csv: {error}") from None
        if not "".join(row).strip() and len(row) < 2:
            continue
        if not header:
            header = row
            wrong = {"lacks the column": [column for column in columns if column not in header]}
            wrong["has twice the column"] = [column for column in columns if header.count(column) > 1]
            for what, names in wrong.items():
                if names:
                    found = " ".join(", ".join(header).split())[:200]
                    raise UserError(f"{path} {what} {', '.join(names)}: its header is {found}")
            continue
        if any(_columns(line) == len(header) for line in taken[1:-1]):
            raise UserError(
                f"{location}: a quote opens there and closes only in line {rows.line_num}, which swallows rows: close "
                'it, or write a quote inside a text twice ("")'
            )
        if len(row) > len(header):
            raise UserError(
                f"{location} has {len(row)} columns and the header {len(header)}: put texts with , in quotes"
            )
        yield Row(location, dict(zip(header, row)), lines=len(taken))
    if not header:
        raise UserError(f"{path} cannot be read as a csv: it is empty")


def _columns(line: str) -> int:
    try:
        return len(next(csv.reader([line])))
    except csv.Error:  # a lone carriage return, which is a letter inside quotes alone
        return 0


def _require_closed_quote(lines: list[str], location: str) -> None:
    try:
        list(csv.reader(lines, strict=True))
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise UserError(f"{location} cannot be read as a csv: the quote that opens there never closes") from None
