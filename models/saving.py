"""Write a model folder as a whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lamra.common.files import DISK_ERRORS, is_disk_full, remove, unfinished_name
from lamra.models.folders import MODEL_MARKS
from lamra.models.settings import FILE_NAME as SETTINGS_FILE


@contextmanager
def whole_model(folder: str | Path) -> Iterator[Path]:
    """A new folder to write a model into; at the end of the block its files are moved into `folder`.

    The settings are moved first, and the file that marks a folder as a model last: a kill leaves a whole model or none.
    Nothing else in `folder` is touched. If the block raises, nothing has changed.

    Raises:
        OSError: the disk is full; names `folder`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(folder / "model")
    try:
        unfinished.mkdir()
        yield unfinished
        follow_umask(unfinished)
        written = sorted(unfinished.iterdir(), key=lambda path: (path.name in MODEL_MARKS, path.name != SETTINGS_FILE))
        for path in [*written, unfinished]:
            fsync(path)
        for mark in MODEL_MARKS:
            (folder / mark).unlink(missing_ok=True)
        for path in written:
            if path.is_dir():
                remove(folder / path.name)
            os.replace(path, folder / path.name)
        fsync(folder)
    except DISK_ERRORS as error:
        if is_disk_full(error):  # safetensors' message names no file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def follow_umask(folder: Path) -> None:
    """Give a folder's files the rights of any new file of this user: safetensors lets nobody else read them."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o666 != 0o666 & ~mask:
            with suppress(PermissionError):  # a file system that has no such rights
                path.chmod(0o666 & ~mask)


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
