"""MT-FIQ: prompts byte for byte, the gallery's doubles, categories, and a sentence for each way to be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from zeroshot_files import B, I, draw, embedded, reranked, write

from lamra.common.errors import UserError
from lamra.datasets.caption import PROTOCOLS
from lamra.datasets.tasks import Reported, RetrievalTask
from lamra.datasets.zeroshot import multiturn_fashion
from lamra.datasets.zeroshot.multiturn_fashion import multiturn_fashion_tasks

URL = "http://ecx.images-amazon.com/images/I/1.jpg"
GALLERY = ["B00A", "B00B", "B00C"]
QUERY = {
    "target": [URL, "B00A"],
    "reference": [[URL, ["is blue", " has sleeves "], "B00B"], [URL, ["", "is longer"], "B00C"]],
}


def read(folder: Path, queries: object, gallery: object = GALLERY, protocol: str = "released", **more) -> RetrievalTask:
    pictures = draw(folder / "pictures", "B00A.jpg", "B00B.jpg", "B00C.jpg", "7.jpg")
    paths = write(folder / "all.val.json", queries), write(folder / "split.all.val.json", gallery)
    (task,) = multiturn_fashion_tasks(*paths, pictures, protocol, **more)
    return task


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prompts(tmp_path, protocol):
    task = read(tmp_path, [QUERY], protocol=protocol)
    asked = (
        "Find me a similar fashion image based on the following multi-round modifications."
        "[B00B.jpg]is blue and  has sleeves [B00C.jpg]is longer"
    )
    assert embedded(task.queries[0]) == asked + B
    assert embedded(task.gallery[0]) == f"[B00A.jpg]{I}"
    assert reranked(task.queries[0], task.gallery[0]) == f"Query:{asked}Candidate:[B00A.jpg]"  # the same words


def test_a_name_that_stands_twice_counts_once_and_what_is_shown_stays(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(multiturn_fashion, "PUBLISHED", 2)
    other = {**QUERY, "target": [URL, 7]}
    task = read(tmp_path, [QUERY, other], ["B00A", "B00B", "7", "B00A"])
    assert [item.id for item in task.gallery] == ["B00A", "B00B", "7"]
    assert "1 of 4 names stand there again" in capsys.readouterr().out
    assert (task.answers, task.excluded) == ([[0], [2]], None)
    assert (task.ks, task.counted, task.reported) == ((5, 8, 10), 5, Reported(60.9, 63.9))
    assert [item.id for item in task.queries] == ["0", "1"]


def test_a_category_has_files_of_its_own(tmp_path):
    write(tmp_path / "dress.val.json", [QUERY, QUERY])
    write(tmp_path / "split.dress.val.json", GALLERY[:1])
    task = read(tmp_path, [QUERY], category="dress")
    assert (len(task.queries), len(task.gallery), task.reported) == (2, 1, None)
    assert task.files["queries"] == tmp_path / "dress.val.json"
    with pytest.raises(UserError, match=r"MT-FIQ: .*split\.shirt\.val\.json does not exist"):
        read(tmp_path, [QUERY], category="shirt")
    path = write(tmp_path / "mine.json", [QUERY])
    with pytest.raises(UserError, match=r"--category dress: .*mine\.json has no all in its name"):
        multiturn_fashion_tasks(path, path, tmp_path, "clean", category="dress")


def with_captions(folder: Path, queries: list, train: list, val: list) -> list[RetrievalTask]:
    """The tasks where FashionIQ has these pairs of dresses."""
    for of in ("dress", "shirt", "toptee"):
        for split, pairs in (("train", train), ("val", val)):
            rows = [{"candidate": one, "target": other, "captions": ["is blue"]} for one, other in pairs]
            write(folder / f"cap.{of}.{split}.json", rows if of == "dress" else [])
    paths = write(folder / "all.val.json", queries), write(folder / "split.all.val.json", GALLERY)
    return multiturn_fashion_tasks(*paths, folder, "clean", fashioniq_captions=folder)


def test_queries_that_end_with_no_training_pair_are_a_task_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(multiturn_fashion, "PUBLISHED", 3)
    queries = [QUERY, {**QUERY, "target": [URL, "B00B"]}, {**QUERY, "target": [URL, "B00C"]}]  # each ends with B00C
    every, val = with_captions(
        tmp_path, queries, [("B00C", "B00B"), ("B00B", "B00C")], [("B00C", "B00A"), ("B00C", "B00B")]
    )
    assert (every.name, len(every.queries), every.reported) == ("image_retrieval", 3, Reported(60.9, 63.9))
    assert (val.name, [item.id for item in val.queries], val.reported) == ("image_retrieval_val_turn", ["0"], None)
    assert val.gallery is every.gallery and (val.answers, val.ks, val.counted) == ([[0]], (5, 8, 10), 5)
    assert val.files["dress_val"] == tmp_path / "cap.dress.val.json"

    with pytest.raises(UserError, match=r"no query of MT-FIQ ends with a pair of its val: give FashionIQ's own"):
        with_captions(tmp_path, queries, [], [("B00B", "B00A")])
    write(tmp_path / "cap.shirt.train.json", [{"candidate": "B00A"}])
    with pytest.raises(UserError, match=r'cap\.shirt\.train\.json row 0 lacks "target"'):
        multiturn_fashion_tasks(
            tmp_path / "all.val.json", tmp_path / "split.all.val.json", tmp_path, "clean", fashioniq_captions=tmp_path
        )


def turned(turn: object) -> list:
    return [QUERY, {**QUERY, "reference": [turn]}]


WRONG = {
    "not json": ("{", GALLERY, r"all\.val\.json is not json"),
    "an object": ({"a": 1}, GALLERY, r"all\.val\.json is no list of queries"),
    "gallery": ([QUERY], {"a": 1}, r"split\.all\.val\.json is no list of garments: give split\.all\.val\.json"),
    "name": ([QUERY], ["B00A", None], r'split\.all\.val\.json row 1: "name" is \'None\''),
    "row": (["a"], GALLERY, r"all\.val\.json row 0 is not an object but str"),
    "no target": ([QUERY, {"reference": []}], GALLERY, r'row 1 lacks "target": it has reference'),
    "another data set": ([{"candidate": "B", "target": "A"}], GALLERY, r'row 0: "target" is \'A\': a list'),
    "no reference": ([{"target": [URL, "B00A"]}], GALLERY, r"row 0 needs a target of url and name, and a reference"),
    "only url": ([{**QUERY, "target": [URL]}], GALLERY, r"row 0 needs a target of url and name"),
    "not there": ([QUERY], ["B00B"], r"row 0: its target B00A is not in .*split\.all\.val\.json"),
    "turn": (turned([URL, "is blue", "B00B"]), GALLERY, r"row 1 turn 0 is .*: a list of url, captions and name"),
    "no turn": ([{**QUERY, "reference": []}], GALLERY, r'row 0: "reference" is'),
    "all empty": (turned([URL, ["", ""], "B00B"]), GALLERY, r"row 1 turn 0 has no caption that says something"),
    "above": (turned([URL, ["a"], "../a"]), GALLERY, r"row 1 turn 0: the path \.\./a\.jpg leaves"),
}


@pytest.mark.parametrize(("queries", "gallery", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_wrong_files_are_named(tmp_path, queries, gallery, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        read(tmp_path, queries, gallery)
    assert "\n" not in str(error.value)


def test_real_files(shared):
    folder = shared / "data/multiturnfashion"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: MT-FIQ's real queries are not read")
    paths = folder / "data/all.val.json", folder / "image_splits/split.all.val.json"
    (task,) = multiturn_fashion_tasks(*paths, folder, "released")
    assert (len(task.queries), len(task.gallery)) == (2400, 6257)
