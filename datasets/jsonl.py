"""Items from a jsonl file: lines {"id", "text"?, "image"?}, image paths relative to the file or to a folder."""

from __future__ import annotations

from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import path_inside, read_jsonl
from lamra.datasets.items import Item


def load_items(path: str | Path, image_root: str | Path | None = None) -> list[Item]:
    """Read all items, in order.

    Args:
        image_root: the folder that holds all pictures; by default that of the file.

    Raises:
        UserError: the file is missing or empty, or a line is malformed, repeats an id or names a picture outside of
            image_root; names file and line.
    """
    path = Path(path)
    image_root = path.parent if image_root is None else Path(image_root)
    if not path.is_file():
        raise UserError(f"--input {path} does not exist")
    items, seen = [], set()
    for row in read_jsonl(path):
        try:
            identifier = str(row["id"])
            images = (path_inside(image_root, row["image"]),) if row.get("image") else ()
            if images and not images[0].is_file():
                raise UserError(f"picture {images[0]} does not exist")
            items.append(Item(identifier, row.get("text") or None, images))
        except (ValueError, TypeError, OSError) as error:
            raise UserError(f'{row.location} is not {{"id", "text" and/or "image"}}: {error}') from None
        if identifier in seen:
            raise UserError(f"{row.location} repeats the id {identifier!r}: ids must be unique")
        seen.add(identifier)
    if not items:
        raise UserError(f"--input {path} has no items")
    return items
