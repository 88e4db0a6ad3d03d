"""What an index holds of a folder of pictures and videos, or of a jsonl: a row an item, and how a change is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from lamra.datasets.items import Item, Picture, Text, Video, picture_or_video
from lamra.datasets.jsonl import load_items, read_item, with_root
from lamra.datasets.picture_folder import pictures_in

KINDS = ("picture", "text", "video", "mixed")


@dataclass(frozen=True)
class Row:
    """An item as an index knows it, without its vector.

    Attributes:
        key: the file's path below the source, or the line's id.
        kind: one of KINDS.
        folder: of its first file, below the source; "" at its top and for a text.
        path: of its first file, below the source; "" for a text.
        line: the item as a line of jsonl, with paths below the source.
        state: size in bytes and time of change in ns of each file, as json. With `line` it tells a change.
    """

    key: str
    kind: str
    folder: str
    path: str
    text: str
    line: str
    state: str

    def item(self, root: Path) -> Item:
        return item_of(self.line, root)


def item_of(line: str, root: Path) -> Item:
    """The item of a row's `line`, its files below the source's folder `root`."""
    row = json.loads(line)
    item = read_item(row, row["id"], f"item {row['id']}")
    return replace(item, parts=with_root(item.parts, root))


def root_of(source: Path, image_root: str | Path | None = None) -> Path:
    """The folder that a source's paths start from."""
    if source.is_dir():
        return source
    return source.parent if image_root is None else Path(image_root)


def rows_of(source: Path, image_root: str | Path | None, missing_files: bool, tell: Callable[[str], None]) -> list[Row]:
    """All rows of a source, in order.

    Args:
        source: a folder of pictures and videos, or a jsonl of items (see datasets.jsonl).
        image_root: of a jsonl; default: its own folder.
        missing_files: whether a jsonl may name files that are not there.
        tell: gets a sentence about what is left out.

    Raises:
        UserError: there is no item; or as load_items and pictures_in.
    """
    root = root_of(source, image_root)
    if source.is_dir():
        items = _of_folder(pictures_in(source, tell, "source"), root, tell)
    else:
        items = iter(load_items(source, root, pictures_there=not missing_files))
    return [_row(item, root) for item in items]


def _of_folder(paths: list[Path], root: Path, tell: Callable[[str], None]) -> Iterator[Item]:
    unnamed = [path for path in paths if not _is_text(str(path))]
    if unnamed:
        tell(f"{root}: {len(unnamed)} files are left out, because their names are not UTF-8: rename them")
    for path in paths:
        if _is_text(str(path)):
            yield Item(path.relative_to(root).as_posix(), parts=(picture_or_video(path),))


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _row(item: Item, root: Path) -> Row:
    content: list[dict[str, str]] = []
    state: list[tuple[int, int] | None] = []
    for part in item.parts:
        if isinstance(part, Text):
            content.append({"text": part.text})
            continue
        file = Path(str(part.path if isinstance(part, Video) else part.image))
        name = PurePath(os.path.relpath(file, root)).as_posix()
        content.append({"video" if isinstance(part, Video) else "image": name})
        try:
            status = file.stat()
            state.append((status.st_size, status.st_mtime_ns))
        except OSError:  # whoever opens it tells
            state.append(None)
    path = next((name for part in content for kind, name in part.items() if kind != "text"), "")
    line = {"id": item.id, "content": content}
    if item.instruction is not None:
        line["instruction"] = item.instruction
    folder = PurePath(path).parent.as_posix() if path else ""
    return Row(
        key=item.id,
        kind=_kind(item),
        folder="" if folder == "." else folder,
        path=path,
        text=item.text or "",
        line=json.dumps(line, ensure_ascii=False),
        state=json.dumps(state),
    )


def _kind(item: Item) -> str:
    if len(item.parts) > 1:
        return "mixed"
    return {Text: "text", Picture: "picture", Video: "video"}[type(item.parts[0])]
