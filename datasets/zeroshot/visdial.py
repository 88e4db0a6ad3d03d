"""Visual Dialog (VisDial v1.0 val): a dialog of ten rounds searches the picture that it is about.

visdial_1.0_val.json of visualdialog.org:
    {"split": "val2018", "data": {"questions": ["is it sunny"], "answers": ["yes"], "dialogs": [{"image_id": 185565,
     "dialog": [{"question": 0, "answer": 0, ..}, 9 more], ..}]}}
A round's question and answer are positions in the two lists. The pictures are VisualDialog_val2018_000000185565.jpg.
The protocols are the same here. What is asked is FROMAGe's evaluation (kohjingyu/fromage): the picture's caption is not
shown.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import Row
from lamra.datasets.items import Item
from lamra.datasets.tasks import ItemList, Reported, RetrievalTask
from lamra.datasets.zeroshot.fields import identifier, listed, picture_path, read, text, whole_number

NAME, SPLIT, ROUNDS = "VisDial", "val2018", 10
PUBLISHED = 2064  # dialogs of the published file
PAPER = Reported(62.8, 70.9)  # R@1 (arXiv 2412.01720)
INSTRUCTION = "Find me an everyday image that matches the given dialog."
RERANK_INSTRUCTION = "Find the image that matches the dialogue"  # upstream's, without a full stop


def visdial_tasks(data_path: str | Path, image_path_prefix: str | Path, protocol: str) -> list[RetrievalTask]:
    """Dialogs search pictures, which counts, and pictures search dialogs.

    Args:
        image_path_prefix: the folder of the pictures. Whether one is there is left to whoever opens it.
        protocol: one of caption.PROTOCOLS.

    Raises:
        UserError: the file is missing or of another split or data set, a row is malformed.
    """
    data_path = Path(data_path)
    dialogs, pictures = [], []
    for location, image, said in _dialogs(data_path):
        path = picture_path(image_path_prefix, f"VisualDialog_{SPLIT}_{image.zfill(12)}.jpg", location)
        dialogs.append(Item(image, said, instruction=INSTRUCTION))
        pictures.append(Item(image, images=(path,)))
    asked = ItemList(dialogs, f"{NAME} dialogs", data_path)
    shown = ItemList(pictures, f"{NAME} pictures", data_path)
    reworded = [replace(item, instruction=RERANK_INSTRUCTION) for item in dialogs]
    to_rerank = ItemList(reworded, f"{NAME} dialogs to rerank for", data_path)
    answers, files = [[row] for row in range(len(asked))], {"dialogs": data_path}
    return [
        RetrievalTask(
            "image_retrieval",
            asked,
            shown,
            answers,
            reported=PAPER if len(asked) == PUBLISHED else None,
            files=files,
            rerank_queries=to_rerank,
        ),
        RetrievalTask("text_retrieval", shown, asked, answers, files=files),
    ]


def _dialogs(path: Path) -> list[tuple[str, str, str]]:
    """Of each dialog where it stands, the id of its picture, and all that is said."""
    content = Row(str(path), read(path, NAME))
    split = text(content, "split")
    if split != SPLIT:
        raise UserError(f"{path} is the split {split!r} of {NAME}: give visdial_1.0_val.json, which is {SPLIT!r}")
    data = Row(f"{path} data", content["data"])
    questions, answers = (listed(data, data.location, name) for name in ("questions", "answers"))
    found: dict[str, tuple[str, str, str]] = {}
    for number, value in enumerate(listed(data, data.location, "dialogs")):
        dialog = Row(f"{path} dialog {number}", value)
        image = identifier(dialog, "image_id")
        if image in found:
            raise UserError(f"{dialog.location} is of image_id {image}, as {found[image][0]} is: remove one")
        rounds = listed(dialog, dialog.location, "dialog")
        if len(rounds) != ROUNDS:
            raise UserError(f"{dialog.location} has {len(rounds)} rounds and not {ROUNDS}: use {NAME} v1.0's val file")
        said = []
        for place, value in enumerate(rounds):
            turn = Row(f"{dialog.location} round {place}", value)
            question, answer = _said(turn, "question", questions), _said(turn, "answer", answers)
            said.append(f"Q: {question}? A: {answer}.")
        found[image] = dialog.location, image, " ".join(said)
    return list(found.values())


def _said(turn: Row, name: str, texts: list) -> str:
    position = whole_number(turn, name)
    if not 0 <= position < len(texts):
        raise UserError(f'{turn.location}: "{name}" is {position}, and data has {len(texts)} {name}s (from 0)')
    if not isinstance(texts[position], str):
        raise UserError(f"{turn.location}: {name} {position} of data is {texts[position]!r:.80} and not a string")
    return texts[position]
