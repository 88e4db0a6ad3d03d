"""Items from json: {"id", "text"?, "image"?, "video"?}, or {"id", "content": [{"text"}, {"image"}, {"video"}, ...]}.

Each may have an "instruction", which says what to retrieve.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from lamra.common.errors import ItemError, UserError
from lamra.common.files import as_on_disk, path_inside, read_jsonl
from lamra.datasets.items import Item, Part, Picture, Text, Video, is_blank

KINDS = ("text", "image", "video")
KEYS = (*KINDS, "content")
FORMAT = '"text", "image" and/or "video", or "content": [{"text"}, {"image"}, {"video"}, ...]'


def read_parts(row: object, location: str, *, keys: tuple[str, ...] = KEYS) -> tuple[Part, ...]:
    """The parts of a json object; pictures and videos as the paths that it names, or, from Python, as they are.

    Args:
        keys: all that it may have. Nothing reads another, which is said, because a text may stand there.

    Raises:
        UserError: it is not of this format, has another key, or has nothing to show.
    """
    if not isinstance(row, dict):
        raise UserError(f"{location} is not an object with {FORMAT}: {str(row)[:80]!r}")
    if unknown := [key for key in row if key not in keys]:
        raise UserError(
            f"{location} has the key {', '.join(map(repr, unknown))}, which nothing reads: known are {', '.join(keys)}"
        )
    if "content" in row:
        if any(map(row.get, KINDS)):
            raise UserError(f'{location} has "content" and {", ".join(KINDS)} beside it: give the one or the other')
        listed = row["content"] if isinstance(row["content"], list) else [row["content"]]
    else:  # what is seen, then its text
        listed = [{name: row[name]} for name in ("image", "video", "text") if row.get(name) is not None]
    parts: list[Part] = []
    for part in listed:
        match part:
            case {"text": str(text), **others} if not others:
                parts += [Text(text)] if text else []
            case {"image": str() | Path() | Image.Image() as image, **others} if not others:
                parts += [Picture(image)] if image else []
            case {"video": str() | Path() as video, **others} if not others:
                parts += [Video(video)] if video else []
            case _:
                raise UserError(
                    f'{location}: {str(part)[:80]} is not {{"text"}}, {{"image"}} or {{"video"}} with a string'
                )
    if all(isinstance(part, Text) and is_blank(part.text) for part in parts):
        raise UserError(f"{location} has neither text nor picture nor video: it needs {FORMAT}")
    return tuple(parts)


def read_item(row: dict[str, Any], identifier: str, location: str) -> Item:
    """The item of a json object; raises as read_parts."""
    instruction = row.get("instruction")
    if not isinstance(instruction, str | None):
        raise UserError(f'{location}: "instruction" is {str(instruction)[:80]}: give a string')
    parts = read_parts(row, location, keys=("id", *KEYS, "instruction"))
    return Item(identifier, parts=parts, instruction=instruction)


def with_root(parts: tuple[Part, ...], root: Path) -> tuple[Part, ...]:
    """The same parts with the paths of pictures and videos below `root`.

    Raises:
        ItemError: a path leaves `root`.
    """

    def rooted(part: Part) -> Part:
        match part:
            case Picture(image):
                return Picture(path_inside(root, str(image)))
            case Video(path):
                return replace(part, path=path_inside(root, str(path)))
        return part

    return tuple(map(rooted, parts))


def load_items(path: str | Path, image_root: str | Path | None = None, *, pictures_there: bool = True) -> list[Item]:
    """Read all items of a jsonl file, in order.

    Args:
        image_root: the folder that holds all pictures and videos; by default that of the file.
        pictures_there: refuse a picture or video that does not exist; False leaves it to whoever opens it.

    Raises:
        UserError: the file is missing or empty, or a line is malformed, repeats an id or names a picture that does not
            exist or lies outside of image_root; names file and line.
    """
    path = Path(path)
    image_root = path.parent if image_root is None else Path(image_root)
    if not path.exists():
        raise UserError(f"--input {path} does not exist")
    items: dict[str, Item] = {}
    for row in read_jsonl(path):
        if not isinstance(row["id"], str | int) or isinstance(row["id"], bool):
            raise UserError(f'{row.location}: "id" is {str(row["id"])[:80]}: give a string or a whole number')
        identifier = str(row["id"])
        if identifier in items:
            raise UserError(f"{row.location} repeats the id {identifier!r}: ids must be unique")
        item = read_item(row, identifier, row.location)
        try:
            item = replace(item, parts=with_root(item.parts, image_root))
            missing = [file for file in item.files if not as_on_disk(Path(file)).is_file()]
        except (ItemError, OSError) as error:  # a path that leaves the folder, or is too long for one
            raise UserError(f"{row.location}: {error}") from None
        if missing and pictures_there:
            raise UserError(f"{row.location}: picture or video {missing[0]} does not exist")
        items[identifier] = item
    if not items:
        raise UserError(f"--input {path} has no items")
    return list(items.values())
