"""Small pictures for people: of an item's first picture or video, upright whatever the model is shown."""

from __future__ import annotations

import io

from PIL import Image

from lamra.collators.pictures import open_image
from lamra.collators.videos import clip_of, frames_of
from lamra.datasets.items import Item, Video

SIDE = 256  # pixels at most
QUALITY = 80  # JPEG's


def thumbnail_of(item: Item) -> bytes:
    """The JPEG of an item's first picture or of its first video's middle frame; b"" without any.

    All its pictures and videos are decoded: an item that has a thumbnail can be embedded.

    Raises:
        PictureError: one of them cannot be read; names it.
    """
    found = b""
    for part in item.visuals:
        if isinstance(part, Video):
            name = f"video {part.path}"
            middle = clip_of(part, name).frames // 2
            image = next(frames_of(part, [middle], name)) if not found else None
        else:
            image = open_image(part.image, f"picture of item {item.id!r}", exif_rotation=True)
        if image is not None and not found:
            found = jpeg(image)
    return found


def jpeg(image: Image.Image, side: int = SIDE) -> bytes:
    """An RGB picture, no side longer than `side` pixels."""
    image = image.copy()
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
