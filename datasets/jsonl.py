"""Items from a jsonl file: lines {"id", "text"?, "image"?}, image paths relative to the file."""

from __future__ import annotations

import json
from pathlib import Path

from lamra.datasets.items import Item


def load_items(path: str | Path) -> list[Item]:
    """Read all items, in order.

    Raises:
        ValueError: the file is missing or empty, or a line is malformed or repeats an id; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"--input {path} does not exist")
    items, seen = [], set()
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                identifier = str(row["id"])
                images = (path.parent / row["image"],) if row.get("image") else ()
                if images and not images[0].is_file():
                    raise ValueError(f"picture {images[0]} does not exist")
                items.append(Item(identifier, row.get("text"), images))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f'{path} line {number} is not {{"id", "text" and/or "image"}}: {error}') from None
            if identifier in seen:
                raise ValueError(f"{path} line {number} repeats the id {identifier!r}: ids must be unique")
            seen.add(identifier)
    if not items:
        raise ValueError(f"--input {path} has no items")
    return items
