"""The pictures of a pass over a ranking, of which many are candidates of many queries: decoded once, looked at once.

A video is looked at once, too, but decoded for each query that has it among its candidates.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image

from lamra.collators.pictures import open_image
from lamra.collators.rerank import PreparedItem
from lamra.datasets.items import ImageSource, Item, Picture
from lamra.models.reranker import Reranker


class DecodedPictures:
    """The pixels of picture files, the least recently used dropped.

    Args:
        most_bytes: of the pixels kept, 3 a pixel.
        exif_rotation: turn them as their EXIF says.
    """

    def __init__(self, most_bytes: int, exif_rotation: bool = False):
        self.room, self.exif_rotation = most_bytes, exif_rotation
        self._kept: OrderedDict[str, Image.Image] = OrderedDict()

    def decoded(self, item: Item) -> Item:
        """The item with pixels in place of its pictures' paths; raises as open_image."""
        if not item.images:
            return item
        parts = (Picture(self._open(part.image)) if isinstance(part, Picture) else part for part in item.parts)
        return replace(item, parts=tuple(parts))

    def _open(self, source: ImageSource) -> Image.Image:
        if isinstance(source, Image.Image):
            return source
        if (key := str(source)) in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        image = self._kept[key] = open_image(source, exif_rotation=self.exif_rotation)
        self.room -= _bytes(image)
        while self.room < 0:
            self.room += _bytes(self._kept.popitem(last=False)[1])
        return image


def _bytes(image: Image.Image) -> int:
    return 3 * image.width * image.height


class PictureFeatures:
    """Vision features of pictures and videos, computed once and kept on the device, the least recently used dropped.

    Each item's are computed alone, so that they do not depend on the items beside it.

    Args:
        most_bytes: of the features kept.
    """

    def __init__(self, model: Reranker, most_bytes: float):
        self.model, self.room = model, most_bytes
        self.computed = 0  # items so far
        self._kept: OrderedDict[tuple, torch.Tensor] = OrderedDict()

    def of(self, shown: Sequence[PreparedItem]) -> torch.Tensor | None:
        """(tokens, D) of the pictures and videos of items in order; None without any."""
        parts = [self._of_item(item) for item in shown if item.pixel_values is not None]
        return torch.cat(parts) if parts else None

    def _of_item(self, shown: PreparedItem) -> torch.Tensor:
        key = tuple(map(str, shown.item.visuals))
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        pixels, grids = (tensor.to(self.model.device) for tensor in (shown.pixel_values, shown.image_grid_thw))
        features = self.model.picture_features(pixels, grids)
        self.computed += 1
        if len(shown.item.files) == len(shown.item.visuals):  # files have names
            self._kept[key] = features
            self.room -= features.nbytes
            while self.room < 0:
                self.room += self._kept.popitem(last=False)[1].nbytes
        return features
