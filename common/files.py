"""Files: read with names for what is wrong, written as a whole or not at all.

After a kill or on a full disk the older file still stands.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from safetensors import SafetensorError

from lamra.common.errors import ItemError, UserError
from lamra.common.processes import Owner

MIB = 2**20
PATIENCE = 30  # seconds that a network file system may take to show a file
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
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


class Row(dict):
    """An object of a json file that knows where it stands: a field that is missing is told with file and line.

    Attributes:
        location: "items.jsonl line 3".
    """

    def __init__(self, location: str, value: Any):
        if not isinstance(value, dict):
            raise UserError(f"{location} is not an object but {type(value).__name__}")
        super().__init__(value)
        self.location = location

    def __missing__(self, name: str) -> NoReturn:
        raise UserError(f'{self.location} lacks "{name}": it has {", ".join(self) or "nothing"}')


def read_jsonl(path: str | Path) -> Iterator[Row]:
    """The objects of a jsonl file, in order; blank lines are passed over, a byte-order mark too.

    Raises:
        UserError: a line is no json object; names file and line.
    """
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                location = f"{path} line {number}"
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{location} is not json: {error}") from None
                yield Row(location, value)
