"""MT-FIQ (multi-turn FashionIQ): two to four garments, each with what is to change, search the last change's result.

yfyuan01/MultiturnFashionRetrieval's data/all.val.json, a list of
    {"target": [url, "B00A"], "reference": [[url, ["is blue", "has sleeves"], "B00B"], ..]}
and image_splits/split.all.val.json, a list of the gallery's names. The pictures are FashionIQ's <name>.jpg. Beside both
files lie those of one category, dress.val.json and split.dress.val.json. The gallery of "all" names 17 garments twice:
here each counts once. What a query shows stays in its ranking, as in upstream's. The protocols are the same here.

Most turns of this "val" are training pairs of FashionIQ, which M-BEIR trains on. FashionIQ's own
cap.<category>.<split>.json (XiaoxiaoGuo/fashion-iq, captions/), lists of {"candidate": "B00B", "target": "B00A",
"captions": [..]}, tell which of the 2,400 queries end with a pair of its val and none of its train: 437.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.files import Row
from lamra.datasets.items import Item, Part, Picture, Text
from lamra.datasets.tasks import ItemList, Reported, RetrievalTask
from lamra.datasets.zeroshot.fields import identifier, listed, picture_path, read

NAME = "MT-FIQ"
PUBLISHED = 2400  # queries of all categories
PAPER = Reported(60.9, 63.9)  # R@5 (arXiv 2412.01720)
INSTRUCTION = "Find me a similar fashion image based on the following multi-round modifications."
KS, COUNTED = (5, 8, 10), 5
CATEGORIES = ("all", "dress", "shirt", "toptee")
VAL_TURN = "image_retrieval_val_turn"


def multiturn_fashion_tasks(
    query_data_path: str | Path,
    cand_data_path: str | Path,
    image_path_prefix: str | Path,
    protocol: str,
    *,
    category: str = "all",
    fashioniq_captions: str | Path | None = None,
) -> list[RetrievalTask]:
    """Rounds of changes search their result; with FashionIQ's captions, also VAL_TURN: those that end with its val.

    Args:
        query_data_path, cand_data_path: the queries' and the gallery's json.
        image_path_prefix: the folder of the pictures. Whether one is there is left to whoever opens it.
        protocol: one of caption.PROTOCOLS.
        category: one of CATEGORIES; another than "all" reads its own files, which lie beside these.
        fashioniq_captions: the folder of FashionIQ's caption files.

    Raises:
        UserError: a file is missing or of another data set, a row is malformed, a target is not in the gallery, or no
            query's last turn is a pair of FashionIQ's val.
    """
    query_data_path, cand_data_path = _of(category, query_data_path), _of(category, cand_data_path)
    path_of: dict[str, Path] = {}

    def picture(name: str, location: str) -> Path:
        return picture_path(image_path_prefix, f"{name}.jpg", location)

    names = read(cand_data_path, NAME)
    if not isinstance(names, list) or not names:
        raise UserError(f"{cand_data_path} is no list of garments: give split.{category}.val.json as the gallery")
    for number, name in enumerate(names):
        row = Row(f"{cand_data_path} row {number}", {"name": name})
        path_of[identifier(row, "name")] = picture(str(name), row.location)
    if twice := len(names) - len(path_of):
        note(f"{cand_data_path}: {twice} of {len(names)} names stand there again: each garment counts once")

    row_of = {name: row for row, name in enumerate(path_of)}
    queries, answers, last_turns = [], [], []
    for number, row in enumerate(_rows(query_data_path)):
        target = Row(row.location, dict(enumerate(listed(row, row.location, "target"))))
        if len(target) != 2 or "reference" not in row:
            raise UserError(f"{row.location} needs a target of url and name, and a reference: give {NAME}'s queries")
        name = identifier(Row(row.location, {"target": target[1]}), "target")
        if name not in row_of:
            raise UserError(f"{row.location}: its target {name} is not in {cand_data_path}: give files of one category")
        parts: list[Part] = [Text(INSTRUCTION)]
        for place, turn in enumerate(listed(row, row.location, "reference")):
            garment, changes = _turn(turn, f"{row.location} turn {place}")
            parts += [Picture(picture(garment, f"{row.location} turn {place}")), Text(changes)]
        queries.append(Item(str(number), parts=parts))
        answers.append([row_of[name]])
        last_turns.append((garment, name))
    gallery = [Item(name, images=(path,)) for name, path in path_of.items()]
    task = RetrievalTask(
        "image_retrieval",
        ItemList(queries, f"{NAME} queries", query_data_path),
        ItemList(gallery, f"{NAME} garments", cand_data_path),
        answers,
        ks=KS,
        counted=COUNTED,
        reported=PAPER if len(queries) == PUBLISHED else None,
        files={"queries": query_data_path, "gallery": cand_data_path},
    )
    return [task] if fashioniq_captions is None else [task, _val_turn(task, last_turns, Path(fashioniq_captions))]


def _val_turn(task: RetrievalTask, last_turns: list[tuple[str, str]], captions: Path) -> RetrievalTask:
    """The queries whose last turn, (garment, target), is a pair of FashionIQ's val and none of its train.

    The paper has no numbers of them.
    """
    files = {
        f"{of}_{split}": captions / f"cap.{of}.{split}.json" for of in CATEGORIES[1:] for split in ("train", "val")
    }
    pairs: dict[str, set[tuple[str, str]]] = {"train": set(), "val": set()}
    for name, path in files.items():
        content = read(path, "FashionIQ")
        if not isinstance(content, list):
            raise UserError(f"{path} is no list of pairs: give the folder captions of XiaoxiaoGuo/fashion-iq")
        rows = (Row(f"{path} row {number}", value) for number, value in enumerate(content))
        pairs[name.split("_")[1]] |= {(identifier(row, "candidate"), identifier(row, "target")) for row in rows}
    others = np.array([pair in pairs["train"] or pair not in pairs["val"] for pair in last_turns])
    if others.all():
        raise UserError(f"{captions}: no query of {NAME} ends with a pair of its val: give FashionIQ's own captions")
    left = task.without(others, np.zeros(len(task.gallery), bool), task.gallery)
    return replace(left, name=VAL_TURN, files={**task.files, **files})


def _of(category: str, path: str | Path) -> Path:
    """The file itself, or that of a category beside it."""
    path = Path(path)
    if category == "all":
        return path
    of = [category if part == "all" else part for part in path.name.split(".")]
    if category not in of:
        raise UserError(f"--category {category}: {path} has no all in its name that {category} could stand for")
    return path.with_name(".".join(of))


def _rows(path: Path) -> list[Row]:
    content = read(path, NAME)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} is no list of queries: give {NAME}'s all.val.json")
    return [Row(f"{path} row {number}", value) for number, value in enumerate(content)]


def _turn(turn: object, location: str) -> tuple[str, str]:
    """The garment of a turn, and its changes as one text."""
    match turn:
        case [_, list(captions), name] if all(isinstance(caption, str) for caption in captions):
            changes = " and ".join(caption for caption in captions if caption)
            if changes:
                return identifier(Row(location, {"name": name}), "name"), changes
            raise UserError(f"{location} has no caption that says something: write one, or remove the row")
    raise UserError(f"{location} is {str(turn)[:80]}: a list of url, captions and name is expected")
