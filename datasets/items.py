"""What every dataset yields: items to embed, and pairs of them to train on."""

from __future__ import annotations

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
