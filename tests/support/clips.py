"""Video files for tests, encoded by av."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image


def write_clip(path: Path, frames: Sequence[Image.Image], *, rate: int = 25, codec: str = "mpeg4") -> Path:
    """Encode pictures of one size; "ffv1" keeps every pixel."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def drawn(count: int, width: int = 64, height: int = 48) -> list[Image.Image]:
    """Frames of one colour each: frame i is 5 * i in red, up to 51 of them."""
    return [Image.new("RGB", (width, height), (5 * i, 100, 200)) for i in range(count)]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
