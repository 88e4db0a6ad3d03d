"""CIRCO: prompts byte for byte, both layouts, several answers, the submission, a sentence for each way to be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from zeroshot_files import B, I, embedded, reranked, write

from lamra.common.errors import UserError
from lamra.datasets.caption import PROTOCOLS
from lamra.datasets.rankings import RankedQuery
from lamra.datasets.tasks import Reported
from lamra.datasets.zeroshot import circo
from lamra.datasets.zeroshot.circo import circo_tasks, write_submission

INFO = {"info": {}, "images": [{"id": n, "file_name": f"{n:012d}.jpg"} for n in (97, 85, 48, 7)]}


def row(**more) -> dict:
    asks = {"reference_img_id": 85, "relative_caption": "is held by a girl", "shared_concept": "a teddy bear", "id": 0}
    return asks | {"target_img_id": 48, "gt_img_ids": [97, 48], "semantic_aspects": ["addition"]} | more


def asked(**more) -> dict:
    return {name: value for name, value in row(**more).items() if name[:2] not in ("ta", "gt", "se")}


def read(folder: Path, rows: object, info: object = INFO, split: str = "val", protocol: str = "released", below=""):
    """The one task of a split; `below` the folder in which image_info lies."""
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / (below or "annotations")).mkdir(parents=True, exist_ok=True)
    write(folder / (below or "annotations") / circo.IMAGE_INFO, info)
    write(folder / "annotations" / f"{split}.json", rows)
    (task,) = circo_tasks(folder / "annotations", folder / "unlabeled2017", protocol, (split,))
    return task


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prompts(tmp_path, protocol):
    task = read(tmp_path, [row()], protocol=protocol)
    query, picture = task.queries[0], task.gallery[0]
    asks = "I'm looking for a similar everyday image with the described changes"
    assert embedded(query) == f"[000000000085.jpg]{asks}. is held by a girl{B}"
    assert embedded(picture) == f"[000000000097.jpg]{I}"
    said = f"Query:[000000000085.jpg]{asks} is held by a girlCandidate:[000000000097.jpg]"
    assert reranked(task.rerank_queries[0], picture) == said


@pytest.mark.parametrize("below", ["", "COCO2017_unlabeled/annotations"])
def test_several_answers_of_which_the_target_is_the_first(tmp_path, monkeypatch, below):
    monkeypatch.setattr(circo, "PUBLISHED", (2, 4))
    rows = [row(), row(id="1", target_img_id="7", gt_img_ids=["7"], semantic_aspects=["negation", "addition"])]
    task = read(tmp_path, rows, below=below)
    assert [item.id for item in task.gallery] == ["97", "85", "48", "7"]  # the file's order, the reference among them
    assert task.answers == [[2, 0], [3]] and task.aspects == [["addition"], ["negation", "addition"]]
    assert (task.name, task.headline, task.ks, task.server) == ("circo_val", "map@5", (5, 10, 25, 50), None)
    assert task.reported is None  # the paper's number is of test
    assert task.files["gallery"].parent == tmp_path / (below or "annotations")
    test = read(tmp_path, [asked(), asked(id=1)], split="test")
    assert (test.answers, test.aspects, test.server) == ([[], []], None, circo.SERVER)
    assert test.reported == Reported(33.2, 42.8)
    both = circo_tasks(tmp_path / "annotations", tmp_path, "released")
    assert [task.name for task in both] == ["circo_val", "circo_test"] and both[0].gallery is both[1].gallery
    monkeypatch.setattr(circo, "PUBLISHED", (2, 5))
    assert read(tmp_path, [asked(), asked(id=1)], split="test").reported is None


def test_submission(tmp_path):
    task = read(tmp_path, [asked(), asked(id=1)], split="test")
    write_submission(tmp_path / "s.json", task, [RankedQuery(1, [3, 0], [1, 0.5]), RankedQuery(0, [1, 2], [1, 0.5])])
    assert (tmp_path / "s.json").read_text() == '{"0": [85, 48], "1": [7, 97]}\n'
    nothing = np.zeros(4, dtype=bool)
    with pytest.raises(UserError, match=r"circo_test: 1 of 2 queries cannot be read, first 1: https://circo\.micc"):
        task.without(np.array([False, True]), nothing, task.gallery)
    fewer = task.without(np.zeros(2, dtype=bool), np.array([True, False, False, False]), task.gallery)
    assert len(fewer.queries) == 2


WRONG = {
    "not json": ("{", INFO, "val", r"val\.json is not json"),
    "another data set": ({"images": []}, INFO, "val", r"val\.json is no list of queries: give CIRCO's val\.json"),
    "info of another": ([row()], [], "val", r"image_info_unlabeled2017\.json is not an object but list"),
    "no images": ([row()], {"images": []}, "val", r'image_info_unlabeled2017\.json: "images" is \'\[\]\': a list that'),
    "image twice": ([row()], {"images": INFO["images"] * 2}, "val", r"image 4: its id 97 stands there before"),
    "image of letters": ([row()], {"images": [{"id": "x", "file_name": "x"}]}, "val", r"image 0: its id x stands"),
    "image without name": ([row()], {"images": [{"id": 1}]}, "val", r'image 0 lacks "file_name"'),
    "image above": ([row()], {"images": [{"id": 1, "file_name": "../1.jpg"}]}, "val", r"image 0: the path \.\./1\.jpg"),
    "test as val": ([asked()], INFO, "val", r'val\.json row 0 lacks "target_img_id"'),
    "val as test": ([row()], INFO, "test", r"test\.json row 0 has answers, and test has none: give CIRCO's test\.json"),
    "another order": ([row(id=1)], INFO, "val", r"val\.json row 0 has the id 1: CIRCO's rows are numbered from 0"),
    "no caption": ([row(relative_caption=" ")], INFO, "val", r'row 0: "relative_caption" is \' \': a text is expected'),
    "reference": ([row(reference_img_id=3)], INFO, "val", r"row 0: its reference_img_id 3 is not in .*image_info"),
    "answer": ([row(gt_img_ids=[48, 3])], INFO, "val", r"row 0: its gt_img_ids 3 is not in .*image_info"),
    "answer's type": ([row(gt_img_ids=[48, 1.5])], INFO, "val", r'row 0: "gt_img_ids" is \'1\.5\': a string or'),
    "no answers": ([row(gt_img_ids=[])], INFO, "val", r'row 0: "gt_img_ids" is \'\[\]\': a list that'),
    "target": ([row(target_img_id=7)], INFO, "val", r"row 0: its target 7 is not in its gt_img_ids"),
    "aspects": ([row(semantic_aspects="addition")], INFO, "val", r'row 0: "semantic_aspects" is \'addition\': a list'),
}


@pytest.mark.parametrize(("rows", "info", "split", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_wrong_files_are_named(tmp_path, rows, info, split, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        read(tmp_path, rows, info, split)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_or_of_another_encoding(tmp_path):
    with pytest.raises(UserError, match=r"CIRCO: .*image_info_unlabeled2017\.json does not exist"):
        circo_tasks(tmp_path, tmp_path, "released")
    read(tmp_path, [row()])
    with pytest.raises(UserError, match=r"CIRCO: .*test\.json does not exist"):
        circo_tasks(tmp_path / "annotations", tmp_path, "released")
    (tmp_path / "annotations" / "val.json").write_bytes(
        json.dumps([row(relative_caption="é")], ensure_ascii=False).encode("latin-1")
    )
    with pytest.raises(UserError, match=r"val\.json"):
        circo_tasks(tmp_path / "annotations", tmp_path, "released", ("val",))
