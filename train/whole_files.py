"""Files that are there as a whole or not at all: after a kill or on a full disk the older one still stands."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

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


class Owner:
    """A process that can be told from any other: its machine, its number and when it started.

    The machine is its name and the process-number space (a container has one of its own).
    """

    def __init__(self, host: str, pid: int, start: str):
        self.host, self.pid, self.start = host, pid, start

    @classmethod
    def this(cls) -> Owner:
        return cls(this_host(), os.getpid(), start_of(os.getpid()) or "0")

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        match = re.fullmatch(r"(.+)_(\d+)_(\d+)", text)
        return cls(match[1], int(match[2]), match[3]) if match else None

    def __str__(self) -> str:
        return f"{self.host}_{self.pid}_{self.start}"

    def ended(self) -> bool:
        """Whether it certainly has; never known of another machine's."""
        return self.host == this_host() and start_of(self.pid) != self.start


def this_host() -> str:
    space = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return f"{socket.gethostname()}-{''.join(filter(str.isdecimal, space))}".replace("/", "-")


def start_of(pid: int) -> str | None:
    """When a process started, in an unknown unit; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        pass
    else:
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    if os.path.exists("/proc/self/stat"):
        return None
    try:  # a system without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "0"
