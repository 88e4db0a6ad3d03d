"""What every dataset yields: items to embed, and pairs of them to train on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Item:
    """One thing to embed: a text, a picture, or both.

    `images` are paths or PIL pictures (normally none or one). A text may be empty: M-BEIR has candidates without text
    and picture, which are embedded as an empty text. `instruction` says what to retrieve and stands before the text;
    only queries of an instruction-tuned model have one.
    """

    id: str
    text: str | None = None
    images: tuple[str | Path | Image.Image, ...] = ()
    instruction: str | None = None

    def __post_init__(self):
        if self.text is None and not self.images:
            raise ValueError(f"item {self.id!r} has neither text nor picture")


@dataclass(frozen=True)
class Pair:
    """A training example: a query, its positive target and any number of hard negatives."""

    query: Item
    target: Item
    negatives: tuple[Item, ...] = ()


def path_inside(root: str | Path, name: str | Path) -> Path:
    """`name` below the folder `root`; an absolute path counts only if it lies there.

    What counts is the path as it is written: a symbolic link, `root` itself or one below it, may lead elsewhere,
    because whoever laid out the data folder put it there.

    Raises:
        ValueError: the path leaves `root`.
    """
    top = Path(os.path.abspath(root))
    path = Path(os.path.normpath(top / name))
    if ".." in Path(name).parts or top not in path.parents:
        raise ValueError(f"the path {name} leaves {root}: give one inside that folder")
    return Path(root, name)
