"""Picture files to RGB: which formats are read, how large a picture may be, and which way up it is shown."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lamra.common.errors import PictureError, UserError
from lamra.common.files import as_on_disk
from lamra.datasets.items import Crop, ImageSource

# Pillow knows forty more. Some start a program (EPS), some are hardly tried.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "MPO", "AVIF")
MAX_ASPECT_RATIO = 200  # smart_resize's own limit
MAX_PIXELS = "LAMRA_MAX_PICTURE_PIXELS"  # an environment variable, because it depends on the machine's memory
DEFAULT_MAX_PIXELS = 89_478_485  # Pillow warns beyond it; a pixel needs up to 16 bytes while it is prepared
Box = tuple[float, float, float, float]  # left, top, right, bottom
ORIENTATION = 0x0112  # EXIF's tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: ImageSource, name: str = "picture", *, exif_rotation: bool = False) -> Image.Image:
    """Decode a picture of any mode to RGB, without its EXIF. Transparency is dropped, as upstream does.

    Args:
        name: what to call a picture that is no file.
        exif_rotation: turn it as its EXIF says; False shows it as it is stored, as upstream does.

    Raises:
        PictureError: the file is missing, none of FORMATS, damaged, too large or too thin; names it.
        UserError: the variable MAX_PIXELS is no number.
    """
    if isinstance(source, Image.Image):
        with named_faults(name, max_pixels()) as most:
            return _as_rgb(source, most, exif_rotation)
    with named_faults(f"picture {source}", max_pixels()) as most, _opened(source) as image:
        return _as_rgb(image, most, exif_rotation, source.box if isinstance(source, Crop) else None)


def picture_size(source: str | Path | Crop) -> tuple[int, int]:
    """Width and height as they are stored, from the file's header alone; raises as `open_image`."""
    with named_faults(f"picture {source}", max_pixels()) as most, _opened(source) as image:
        width, height = image.size
        check_shape(width, height, most)
        if isinstance(source, Crop):
            width = height = _inside(source.box, width, height, most)[1]
        return width, height


def max_pixels() -> int:
    """The largest picture that is decoded.

    Raises:
        UserError: the variable MAX_PIXELS is no number of pixels.
    """
    value = os.environ.get(MAX_PIXELS) or str(DEFAULT_MAX_PIXELS)
    if not re.fullmatch(r"[1-9][0-9]{0,14}", value):
        raise UserError(f"{MAX_PIXELS} is {value!r}: expected a number of pixels, such as {DEFAULT_MAX_PIXELS}")
    return int(value)


@cache
def _readers() -> tuple[str, ...]:
    """Those of FORMATS that Pillow has; JPEG's reads MPO."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _opened(source: str | Path | Crop) -> Image.Image:
    return Image.open(found_file(source), formats=_readers())


def found_file(source: str | Path | Crop) -> Path:
    """The file of this name, however it spells its accents; as it is if there is none.

    Raises:
        ValueError: it is a folder, a FIFO, ...
    """
    path = Path(source)
    if not path.is_file():
        path = as_on_disk(path)
        if path.exists() and not path.is_file():  # a FIFO would be waited for
            raise ValueError("it is no file")
    return path


def _as_rgb(image: Image.Image, most: int, exif_rotation: bool, box: Box | None = None) -> Image.Image:
    check_shape(*image.size, most)
    image.load()  # Pillow turns a TIFF in any case, here, and forgets its orientation
    upright = UPRIGHT.get(image.getexif().get(ORIENTATION, 1)) if exif_rotation else None
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion cuts at 255, and all but black turns white
        image = _grey(np.asarray(image), image.mode)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range: save it with 8 bits")
    image = image.convert("RGB")
    image.info.clear()  # a decoded picture may be opened again, and must not be turned twice
    if box is not None:
        inside, side = _inside(box, *image.size, most)
        part, image = image.crop(inside), Image.new("RGB", (side, side))
        image.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
    return image if upright is None else image.transpose(upright)


def _inside(box: Box, width: int, height: int, most: int) -> tuple[tuple[int, int, int, int], int]:
    """The pixels of a crop that the picture has, and the side of the square around them."""
    left, top, right, bottom = map(round, box)  # as Pillow's crop does
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        raise ValueError(f"the part lies outside of its {width} x {height} pixels")
    side = max(right - left, bottom - top)
    check_shape(side, side, most)
    return (left, top, right, bottom), side


def _grey(pixels: np.ndarray, mode: str) -> Image.Image:
    """16-bit grey, also where it is stored as 32, as 8 bits."""
    least, most = pixels.min(), pixels.max()
    if mode == "I" and not (least >= 0 and 255 < most < 1 << 16) and pixels.any():
        raise ValueError(f"32-bit grey from {least} to {most} has no fixed range: save it with 8 or 16 bits")
    return Image.fromarray((pixels >> 8).astype(np.uint8))


def check_shape(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"{width} x {height} pixels, an aspect ratio beyond {MAX_ASPECT_RATIO}")


@contextmanager
def named_faults(name: str, most: int) -> Iterator[int]:
    Image.MAX_IMAGE_PIXELS = most  # some formats state the size of a part later; beyond twice as many Pillow raises
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pixels, palettes and damaged EXIF, which change nothing
            yield most
    except FileNotFoundError:
        raise PictureError(f"{name} does not exist") from None
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise PictureError(f"{name} cannot be read (it is none of {formats}): convert or replace the file") from None
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"{name} cannot be read ({error}, more than {most}): make it smaller, or raise the variable {MAX_PIXELS}"
        ) from None
    except Exception as error:  # a hostile file makes Pillow raise nearly anything: struct.error, IndexError, ...
        raise PictureError(f"{name} cannot be read ({error}): repair or replace the file") from None
