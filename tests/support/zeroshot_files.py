"""Files of zero-shot data for tests, and the prompts of what is read from them."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from lamra.collators.messages import POINTWISE, embedding_messages, pointwise_messages
from lamra.datasets.items import Item

T = "\nSummarize above sentence in one word: "
I = "\nSummarize above image in one word: "  # noqa: E741 (as the table of prompts calls it)
B = "\nSummarize above image and sentence in one word: "
M = "\nSummarize above images and sentences in one word: "


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def draw(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def _shown(messages: list[dict], *items: Item) -> str:
    (turn,) = messages
    names = (f"[{Path(file).name}]" for item in items for file in item.files)
    return "".join(part["text"] if part["type"] == "text" else next(names) for part in turn["content"])


def embedded(item: Item) -> str:
    """The user turn of an item's embedding, [file name] for each picture and video."""
    return _shown(embedding_messages(item), item)


def reranked(query: Item, candidate: Item) -> str:
    """A pair as LamRA-Rank reads it, after the sentence that all share."""
    shown = _shown(pointwise_messages("released", query, candidate), query, candidate)
    return shown.removeprefix(POINTWISE["released"])
