"""VisDial: prompts byte for byte, the file as it is published, and a sentence for each way in which it can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from zeroshot_files import I, T, draw, embedded, reranked, write

from lamra.common.errors import UserError
from lamra.datasets.caption import PROTOCOLS
from lamra.datasets.tasks import Reported
from lamra.datasets.zeroshot import visdial
from lamra.datasets.zeroshot.visdial import visdial_tasks

SAID = " ".join(["Q: is it sunny? A: no, it rains."] + 9 * ["Q: how many beds? A: 2."])
PICTURE = "VisualDialog_val2018_000000185565.jpg"


def content(*image_ids: object) -> dict:
    """The file with a dialog for each picture, with all fields that the published one has."""
    rounds = [{"question": 1, "answer": 1, "answer_options": [0, 1], "gt_index": 1}]
    rounds += 9 * [{"question": 0, "answer": 0, "answer_options": [0, 1], "gt_index": 0}]
    dialogs = [
        {"image_id": image, "caption": "a bedroom", "dialog": [dict(turn) for turn in rounds]} for image in image_ids
    ]
    texts = {"questions": ["how many beds", "is it sunny"], "answers": ["2", "no, it rains"]}
    return {"version": "1.0", "split": "val2018", "data": {**texts, "dialogs": dialogs}}


def read(folder: Path, value: object, protocol: str = "released"):
    pictures = draw(folder / "pictures", PICTURE, "VisualDialog_val2018_000000000012.jpg")
    return visdial_tasks(write(folder / "val.json", value), pictures, protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prompts(tmp_path, protocol):
    by_dialog, by_picture = read(tmp_path, content(185565), protocol=protocol)
    query, picture = by_dialog.queries[0], by_dialog.gallery[0]
    assert embedded(query) == f"Find me an everyday image that matches the given dialog. {SAID}{T}"
    assert embedded(picture) == f"[{PICTURE}]{I}"
    assert (by_picture.queries, by_picture.gallery) == (by_dialog.gallery, by_dialog.queries)
    said = f"Query:Find the image that matches the dialogue {SAID}Candidate:[{PICTURE}]"
    assert reranked(by_dialog.rerank_queries[0], picture) == said


def test_a_dialog_is_answered_by_its_picture_and_ids_are_strings(tmp_path, monkeypatch):
    monkeypatch.setattr(visdial, "PUBLISHED", 2)
    by_dialog, by_picture = read(tmp_path, content(185565, "12"))
    assert [item.id for item in by_dialog.queries] == [item.id for item in by_dialog.gallery] == ["185565", "12"]
    assert [task.name for task in (by_dialog, by_picture)] == ["image_retrieval", "text_retrieval"]
    assert by_dialog.answers == by_picture.answers == [[0], [1]]
    assert (by_dialog.reported, by_picture.reported) == (Reported(62.8, 70.9), None)
    assert by_dialog.ks == (1, 5, 10) and by_dialog.counted == 1 and by_dialog.weight == 1
    assert by_dialog.files == {"dialogs": tmp_path / "val.json"}


def changed(*keys: object, value: object) -> dict:
    """The file with another value in one place."""
    found = whole = content(185565, 12)
    for key in keys[:-1]:
        found = found[key]
    found[keys[-1]] = value
    return whole


DIALOG = ("data", "dialogs", 1)
WRONG = {
    "not json": ("{", r"val\.json is not json"),
    "a list": ([], r"val\.json is not an object but list"),
    "another data set": ({"images": []}, r'val\.json lacks "split": it has images'),
    "split": (changed("split", value="test2018"), r"val\.json is the split 'test2018' of VisDial: give"),
    "no questions": (changed("data", "questions", value=None), r'val\.json data: "questions" is \'None\''),
    "no dialogs": (changed("data", "dialogs", value=[]), r'val\.json data: "dialogs" is \'\[\]\': a list that'),
    "no image": (changed(*DIALOG, value={"dialog": []}), r'val\.json dialog 1 lacks "image_id"'),
    "image_id": (changed(*DIALOG, "image_id", value=1.5), r'val\.json dialog 1: "image_id" is \'1\.5\''),
    "twice": (content(12, "12"), r"val\.json dialog 1 is of image_id 12, as .*val\.json dialog 0 is"),
    "above": (content("x/../../12"), r"val\.json dialog 0: the path VisualDialog_val2018_.*\.jpg leaves"),
    "rounds": (changed(*DIALOG, "dialog", value=[{}]), r"val\.json dialog 1 has 1 rounds and not 10"),
    "no answer": (changed(*DIALOG, "dialog", 3, value={"question": 0}), r'dialog 1 round 3 lacks "answer"'),
    "answer": (changed(*DIALOG, "dialog", 3, "answer", value="2"), r'dialog 1 round 3: "answer" is \'2\': a whole'),
    "beyond": (changed(*DIALOG, "dialog", 3, "answer", value=2), r'round 3: "answer" is 2, and data has 2 answers'),
    "below": (changed(*DIALOG, "dialog", 3, "question", value=-1), r'round 3: "question" is -1'),
    "no text": (changed("data", "answers", 0, value=7), r"round 1: answer 0 of data is 7 and not a string"),
}


@pytest.mark.parametrize(("value", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_wrong_files_are_named(tmp_path, value, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        read(tmp_path, value)
    assert "\n" not in str(error.value)


def test_real_file(shared):
    path = shared / "data/visdial/visdial_1.0_val.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent: VisDial's real dialogs are not read")
    by_dialog, _ = visdial_tasks(path, path.parent / "VisualDialog_val2018", "released")
    assert all(item.text.count("Q: ") >= 10 for item in by_dialog.queries)
