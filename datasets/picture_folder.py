"""A folder of pictures and videos, searched to its depths: its files of these kinds, and what is left out of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lamra.common.errors import UserError
from lamra.datasets.items import VIDEO_SUFFIXES

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".mpo", ".avif", *VIDEO_SUFFIXES)


def pictures_in(folder: str | Path, tell: Callable[[str], None], flag: str = "folder") -> list[Path]:
    """The picture and video files in `folder` and below, told by their suffixes, in order of their paths.

    Args:
        tell: gets a sentence that counts what is left out: other suffixes, macOS's ._ files, what is no file.
        flag: how the user chose the folder, for a sentence.

    Raises:
        UserError: there is none, or a folder cannot be read.
    """

    def unreadable(error: OSError) -> NoReturn:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}): give another --{flag}, or the right to read"
        )

    found, left_out = [], Counter[str]()
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        for name in (*folders, *names):
            path, suffix = Path(parent, name), os.path.splitext(name)[1].lower()
            if suffix not in SUFFIXES:
                left_out[suffix or "no suffix"] += name in names
            elif not path.is_file():  # a folder, or a FIFO, which would be waited for
                left_out["no files"] += 1
            elif name.startswith("._"):  # macOS writes one beside each file of a disk that is not its own
                left_out["macOS's ._ files"] += 1
            else:
                found.append(path)
    if left_out := +left_out:
        listed = ", ".join(f"{count} {what}" for what, count in sorted(left_out.items()))
        tell(f"{folder}: {left_out.total()} entries are left out as no pictures or videos: {listed}")
    if not found:
        raise UserError(f"--{flag} {folder} holds no picture or video ({', '.join(SUFFIXES)})")
    return sorted(found)
