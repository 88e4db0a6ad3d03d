"""What every dataset yields: items to embed, and pairs of them to train on."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image

INVISIBLE = {"Cc", "Cf", "Zl", "Zp", "Zs"}  # categories of Unicode
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of a picture file in the middle of a black square; a path that knows which part.

    Attributes:
        path: of the file.
        box: left, top, right and bottom in pixels of the picture as it is stored. What lies beyond it is left out.
    """

    path: str | Path
    box: tuple[float, float, float, float]

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return f"{self.path} {list(self.box)}"


ImageSource = str | Path | Crop | Image.Image


class Indexed(Protocol[T_co]):
    """Items, pairs or examples by their row. There may be too many to hold: each is made when it is taken."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> T_co: ...


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: blanks, line ends, control characters, letters without width such as U+200B."""
    return all(unicodedata.category(letter) in INVISIBLE for letter in text)


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    image: ImageSource


@dataclass(frozen=True, slots=True)
class Video:
    """A clip, shown as some of its frames: `nframes` of them, or `fps` for each second; see collators.videos."""

    path: str | Path
    nframes: int | None = None
    fps: float = 2.0


Part = Text | Picture | Video
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".flv", ".wmv", ".ogv", ".3gp")


def picture_or_video(path: Path) -> Picture | Video:
    """A file by its suffix: a video's is one of VIDEO_SUFFIXES."""
    return Video(path) if path.suffix.lower() in VIDEO_SUFFIXES else Picture(path)


@dataclass(frozen=True, init=False)
class Item:
    """Something to embed: texts, pictures and videos in any number and order.

    A text may be empty: M-BEIR has candidates without text and picture, which are embedded as an empty text.
    `instruction` says what to retrieve; only queries of an instruction-tuned model have one.
    `plural` asks for a word on "images and sentences", as upstream does for its stories alone: for other items, it asks
    for one on "image and sentence" whatever their number.

    `Item(id, text, images)` is the common case: pictures (paths or PIL images), then the text.
    """

    id: str
    parts: tuple[Part, ...]
    instruction: str | None
    plural: bool

    def __init__(
        self,
        id: str,
        text: str | None = None,
        images: Iterable[ImageSource] = (),
        instruction: str | None = None,
        *,
        parts: Sequence[Part] = (),
        plural: bool = False,
    ):
        common: tuple[Part, ...] = tuple(map(Picture, images)) + (() if text is None else (Text(text),))
        if bool(parts) == bool(common):
            has = "parts beside text or images" if parts else "neither text nor picture"
            raise ValueError(f"item {id!r} has {has}")
        fields = {"id": id, "parts": tuple(parts) or common, "instruction": instruction, "plural": plural}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """The pictures, in order."""
        return tuple(part.image for part in self.parts if isinstance(part, Picture))

    @property
    def visuals(self) -> tuple[Picture | Video, ...]:
        """The pictures and videos, in order."""
        return tuple(part for part in self.parts if not isinstance(part, Text))

    @property
    def files(self) -> tuple[str | Path | Crop, ...]:
        """The paths of the pictures and videos that are files, in order."""
        sources = (part.path if isinstance(part, Video) else part.image for part in self.visuals)
        return tuple(source for source in sources if not isinstance(source, Image.Image))

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts, in order."""
        return tuple(part.text for part in self.parts if isinstance(part, Text))

    @property
    def text(self) -> str | None:
        """All texts as one string; None without any."""
        return " ".join(self.texts) if self.texts else None

    @property
    def content(self) -> Hashable:
        """Equal for items that look the same, whatever their ids; pictures and videos count by their path and crop."""

        def of(part: Part) -> Hashable:
            if isinstance(part, Text):
                return part
            if isinstance(part, Video):
                return "video", str(part.path), part.nframes, part.fps
            return "image", id(part.image) if isinstance(part.image, Image.Image) else str(part.image)

        return self.instruction, tuple(map(of, self.parts)), *(["plural"] if self.plural else [])

    def with_texts(self, texts: Sequence[str], instruction: str | None = None) -> Item:
        """The same pictures and videos, and other texts in the texts' positions; more texts follow at the end."""
        left = list(texts)
        parts: list[Part] = []
        for part in self.parts:
            if not isinstance(part, Text):
                parts.append(part)
            elif left:
                parts.append(Text(left.pop(0)))
        return Item(self.id, parts=(*parts, *map(Text, left)), instruction=instruction, plural=self.plural)


@dataclass(frozen=True)
class Pair:
    """A training example: a query, its positive target and any number of hard negatives.

    Attributes:
        teacher: scores of the target and the hard negatives to learn from, None for a candidate without; or empty.
    """

    query: Item
    target: Item
    negatives: tuple[Item, ...] = ()
    teacher: tuple[float | None, ...] = ()
