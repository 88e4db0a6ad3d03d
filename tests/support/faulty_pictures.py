"""Picture files that cannot be read, each in another way."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def png(width: int, height: int, content: bytes = b"") -> bytes:
    """A PNG that claims a size, whatever its content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


FAULTY = {
    "empty": b"",
    "text": b"hello",
    "bomb": png(50_000, 50_000),
    "zero_size": png(0, 0),
    "truncated": png(60, 40),
    "thin": png(3000, 1, b"\0" + b"\1" * 9000),
}


def write_pictures(folder: Path) -> None:
    """40 pictures; files 5, 6 and 17 are faulty."""
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (28, 56, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    for i, name in ((5, "bomb"), (6, "truncated"), (17, "empty")):
        (folder / f"{i:02}.png").write_bytes(FAULTY[name])
