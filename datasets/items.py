"""What every dataset yields: items to embed, and pairs of them to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image


@dataclass(frozen=True)
class Item:
    """One thing to embed: a text, a picture, or both.

    `images` are paths or PIL pictures (normally none or one). `instruction` says what to retrieve and stands before
    the text; only queries of an instruction-tuned model have one.
    """

    id: str
    text: str | None = None
    images: tuple[str | Path | Image.Image, ...] = ()
    instruction: str | None = None

    def __post_init__(self):
        if not self.text and not self.images:
            raise ValueError(f"item {self.id!r} has neither text nor picture")


@dataclass(frozen=True)
class Pair:
    """A training example: a query, its positive target and any number of hard negatives."""

    query: Item
    target: Item
    negatives: tuple[Item, ...] = ()


def path_inside(root: str | Path, name: str) -> Path:
    """The file `name` below `root`, for names that stand in a data file.

    Raises:
        ValueError: the name is absolute or climbs out with "..".
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"picture {name} leaves {root}: give a path inside that folder")
    return Path(root, name)
