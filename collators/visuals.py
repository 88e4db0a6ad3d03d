"""Pictures and videos to patches of pixels: one stream, in which a picture is a clip of one temporal patch.

Patches travel as the bytes of the resized frames, a picture's once, which is an eighth of the numbers that the vision
tower reads: `Visuals.floats` makes these of them, on whatever device they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from lamra.collators.pictures import open_image, picture_size
from lamra.collators.videos import TOGETHER, clip_of, frames_of
from lamra.datasets.items import Item, Picture, Video

Grid = tuple[int, int, int]  # patches in time, height and width


class Visuals:
    """Reads the pictures and videos of items, of which several make a row of the grid each.

    The PIL-backed image processor has the settings of every family: the stock processors need torchvision for their
    video part, and may pick another image backend because of it, with other pixels.

    Args:
        folder: has preprocessor_config.json.
        min_pixels, max_pixels: a picture is resized to an area between these, sides multiples of `side`.
        exif_rotation: turn pictures as their EXIF says.
        frames_apart: each temporal patch of a video is a row of the grid of its own, see models.families.

    Attributes:
        side: pixels; side x side of them are a token.
    """

    def __init__(
        self, folder: str | Path, *, min_pixels: int, max_pixels: int, exif_rotation: bool, frames_apart: bool
    ) -> None:
        # Not as size=: published folders have min_pixels and max_pixels, which override it without a word.
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(
            folder, local_files_only=True, min_pixels=min_pixels, max_pixels=max_pixels
        )
        size = self.image_processor.size
        if (size["shortest_edge"], size["longest_edge"]) != (min_pixels, max_pixels):
            raise RuntimeError(f"pictures would be sized by {size}, not from {min_pixels} to {max_pixels} pixels")
        self.patch, self.merge = self.image_processor.patch_size, self.image_processor.merge_size
        self.side = self.patch * self.merge
        self.exif_rotation, self.frames_apart = exif_rotation, frames_apart

    def pixels(self, item: Item) -> dict[str, Tensor | None]:
        """{"pixel_values": (P, C), "image_grid_thw": (rows, 3)} of pictures and videos in order, None each without any.

        The pixels are bytes, see `floats`; C is 3 * patch**2, and twice that where a video is among them.

        Raises:
            PictureError: one cannot be read; names it.
        """
        if not item.visuals:
            return {"pixel_values": None, "image_grid_thw": None}
        pixels, grids = zip(*(self._pixels_of(part, item) for part in item.visuals))
        return {"pixel_values": in_order(pixels), "image_grid_thw": in_order(grids)}

    def floats(self, pixels: Tensor) -> Tensor:
        """(P, 3 * 2 * patch**2) float32 of (P, C) bytes: the library's values, bit for bit, on the bytes' device."""
        shown = pixels.view(len(pixels), 3, -1, self.patch**2)  # (P, 3, 1 or 2, patch**2)
        rows = shown.int() + 256 * torch.arange(3, dtype=torch.int32, device=shown.device)[:, None, None]
        found = self._values.to(shown.device).index_select(0, rows.flatten()).view(rows.shape)
        return found.expand(-1, -1, self.image_processor.temporal_patch_size, -1).flatten(1)

    def tokens(self, item: Item) -> list[int]:
        """Image tokens of each row of the grid, from pictures' headers and videos' frames; raises as `pixels`."""
        rows = (row for part in item.visuals for row in self._rows(self._grid(part, _name_of(part, item))))
        return [self.tokens_of(*row) for row in rows]

    def tokens_of(self, time: int, height: int, width: int) -> int:
        """Image tokens of a row of the grid."""
        return time * height * width // self.merge**2

    def times(self, video: Video) -> list[float]:
        """Seconds from the beginning to the middle of each temporal patch of a video that was read before."""
        clip = clip_of(video, f"video {video.path}")
        rows = clip.rows(video)
        rows += rows[-1:] * (len(rows) % TOGETHER)
        # In this order of operations, as the library: a tie rounds to another tenth of a second otherwise.
        return [(first / clip.rate + last / clip.rate) / 2 for first, last in zip(rows[::TOGETHER], rows[1::TOGETHER])]

    def _grid(self, part: Picture | Video, name: str) -> Grid:
        if isinstance(part, Video):
            clip = clip_of(part, name)
            frames = len(clip.rows(part))
            height, width = clip.size(frames, self.side)
        else:
            size = part.image.size if isinstance(part.image, Image.Image) else picture_size(part.image)
            frames, (height, width) = 1, self._picture_size(*size)
        return -(-frames // self.image_processor.temporal_patch_size), height // self.patch, width // self.patch

    def _rows(self, grid: Grid) -> list[Grid]:
        time, height, width = grid
        return time * [(1, height, width)] if self.frames_apart else [grid]

    def _pixels_of(self, part: Picture | Video, item: Item) -> tuple[Tensor, Tensor]:
        """The same of a picture or a video."""
        name = _name_of(part, item)
        frames: Iterator[Image.Image]
        if isinstance(part, Picture):
            image = open_image(part.image, name, exif_rotation=self.exif_rotation)
            frames, count, size = iter([image]), 1, self._picture_size(*image.size)
        else:
            clip = clip_of(part, name)
            rows = clip.rows(part)
            frames, count, size = frames_of(part, rows, name), len(rows), clip.size(len(rows), self.side)
        together = min(
            count, self.image_processor.temporal_patch_size
        )  # a single frame is its own second, see `floats`
        grid = -(-count // together), size[0] // self.patch, size[1] // self.patch
        pixels = torch.empty(grid[0], grid[1] * grid[2], 3, together, self.patch**2, dtype=torch.uint8)
        resample = Image.Resampling(self.image_processor.resample)
        for row, frame in enumerate(frames):
            pixels[row // together, :, :, row % together] = self._patches(frame.resize(size[::-1], resample))
        return pixels.flatten(2).flatten(0, 1), torch.tensor(self._rows(grid))

    def _picture_size(self, width: int, height: int) -> tuple[int, int]:
        """Height and width at which a picture is shown."""
        limits = self.image_processor.size["shortest_edge"], self.image_processor.size["longest_edge"]
        return smart_resize(height, width, self.side, *limits)

    def _patches(self, frame: Image.Image) -> Tensor:
        """(patches, 3, patch_size**2) bytes of an RGB frame; the patches that become one token are neighbours."""
        side, merged = self.patch, self.merge
        height, width = frame.height // (merged * side), frame.width // (merged * side)
        cut = np.asarray(frame).reshape(height, merged, side, width, merged, side, 3)
        return torch.from_numpy(cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, side**2))

    @cached_property
    def _values(self) -> Tensor:
        """(3 * 256,) float32: what the library's rescaling and normalisation make of each byte of each channel."""
        processor = self.image_processor
        every = np.tile(np.arange(256, dtype=np.uint8).reshape(16, 16), (3, 1, 1))
        scaled = processor.rescale(every, processor.rescale_factor)
        return torch.from_numpy(processor.normalize(scaled, processor.image_mean, processor.image_std)).flatten()


def in_order(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Pixels (P, C), or grids, of pictures and videos in order; None without any.

    Beside a video's pixels, which have two frames, those of a picture are there twice.
    """
    there = [part for part in parts if part is not None]
    if len(there) < 2:  # a clip's pixels may take a hundred megabytes: no copy
        return there[0] if there else None
    width = max(part.shape[1] for part in there)
    return torch.cat([part if part.shape[1] == width else _twice(part) for part in there])


def _twice(pixels: Tensor) -> Tensor:
    """A picture's bytes (P, 3 * patch**2) as if it were two equal frames."""
    return pixels.view(len(pixels), 3, 1, -1).expand(-1, -1, 2, -1).flatten(1)


def _name_of(part: Picture | Video, item: Item) -> str:
    """What to call it where it cannot be read; a picture that is a file is called by its path."""
    kind = f"video {part.path}" if isinstance(part, Video) else "picture"
    return f"{kind} of item {item.id!r}"
