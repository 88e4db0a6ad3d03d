"""SugarCrepe and CC-Neg: rows, prompts, and one sentence for each way in which the files can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lamra.collators.messages import POINTWISE, embedding_messages, pointwise_messages
from lamra.common.errors import UserError
from lamra.datasets.zeroshot import ccneg
from lamra.datasets.zeroshot.ccneg import ccneg_tasks
from lamra.datasets.zeroshot.sugar_crepe import KINDS, sugar_crepe_tasks

ROW = {"filename": "000000000001.jpg", "caption": "A cat, sits.", "negative_caption": "A dog, sits."}
PICKLED = {
    "image_paths": [f"/workspace/datasets/cc3m/cc3m_subset_images_extracted_final/{n}.jpg" for n in range(3)],
    "annotations": [
        {"json": {"caption": f"a dog, {n}"}, "sop_data": {"negative-prompt": f"not a dog, but a cat, {n}"}}
        for n in range(3)
    ],
}


def rendered(messages: list[dict]) -> str:
    (message,) = messages
    return "".join(part.get("text", "[img]") for part in message["content"])


def sugar_crepe(folder: Path, content, kind: str = "swap_obj") -> list:
    (folder / f"{kind}.json").write_text(json.dumps(content))
    return sugar_crepe_tasks(folder, folder / "val2017", "released", [kind])


@pytest.mark.parametrize("protocol", ["released", "clean"])
def test_prompts(tmp_path, protocol):
    (tmp_path / "swap_obj.json").write_text(json.dumps({"0": ROW, "2": ROW}))
    torch.save(PICKLED, tmp_path / "a.pt")
    (of_sugar,) = sugar_crepe_tasks(tmp_path, tmp_path, protocol, ["swap_obj"])
    (of_ccneg,) = ccneg_tasks(tmp_path / "a.pt", tmp_path, protocol)
    expected = {of_sugar: ("A cat, sits.", "A dog, sits."), of_ccneg: ("a dog, 1", "not a dog but a cat 1")}
    for task, (caption, negative) in expected.items():
        assert rendered(embedding_messages(task.queries[1])) == "[img]\nSummarize above image in one word: "
        for row, text in ((2, caption), (3, negative)):
            words = f"{text}\nSummarize above sentence in one word: "
            assert rendered(embedding_messages(task.gallery[row])) == words
        question = "Query:[img]Find an image caption describing the following everyday image.Candidate:"
        found = rendered(pointwise_messages("released", task.rerank_queries[1], task.gallery[3]))
        assert found == POINTWISE["released"] + question + negative
        assert task.answers[1] == [2] and task.candidates[1] == [2, 3] and task.tie_is_miss
    assert (of_sugar.weight, of_ccneg.weight, of_ccneg.reported) == (0.1, 1.0, None)  # not of 40,000 rows
    assert of_sugar.queries.id(1) == "2" and of_sugar.queries[1].images == (tmp_path / ROW["filename"],)


def test_real_sugar_crepe(shared):
    """All seven files, or extracts of them, as they are published."""
    folder = shared / "data" / "sugar_crepe"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: real files of SugarCrepe are not tried")
    tasks = sugar_crepe_tasks(folder, shared / "data" / "coco" / "images", "released")
    assert [task.name for task in tasks] == [f"sugarcrepe_{kind}" for kind in KINDS]
    for task, kind in zip(tasks, KINDS):
        rows = json.loads((folder / f"{kind}.json").read_text())
        assert [task.queries.id(row) for row in range(len(task.queries))] == list(rows)
        assert [task.gallery[2 * row].text for row in range(len(rows))] == [of["caption"] for of in rows.values()]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([ROW], "is not of SugarCrepe"),
        ({}, "is not of SugarCrepe"),
        ({"0": ROW, "1": "text"}, "row '1' is not an object but str"),
        ({"0": ROW | {"caption": 5}}, "row '0': \"caption\" is '5'"),
        ({"0": {"filename": "a.jpg", "caption": "a"}}, "row '0' lacks \"negative_caption\""),
        ({"0": ROW | {"filename": "../a.jpg"}}, "row '0': the path ../a.jpg leaves"),
    ],
)
def test_bad_sugar_crepe(tmp_path, content, words):
    with pytest.raises(UserError) as error:
        sugar_crepe(tmp_path, content)
    assert words in str(error.value) and "swap_obj.json" in str(error.value)


def test_absent_files(tmp_path):
    for found in (
        lambda: sugar_crepe_tasks(tmp_path, tmp_path, "released"),
        lambda: ccneg_tasks(tmp_path / "a.pt", tmp_path, "released"),
    ):
        with pytest.raises(UserError, match="does not exist"):
            found()


def test_the_pickles_last_rows_and_a_jsonl(tmp_path, monkeypatch):
    torch.save(PICKLED, tmp_path / "a.pt")
    lines = [
        {
            "image": f"cc3m_subset_images_extracted_final/{n}.jpg",
            "caption": f"a dog, {n}",
            "negative_caption": f"not a dog, but a cat, {n}",
        }
        for n in (1, 2)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(ccneg, "TEST_ROWS", 2)
    (pickled,), (of_lines,) = (ccneg_tasks(tmp_path / name, tmp_path, "released") for name in ("a.pt", "a.jsonl"))
    for task in (pickled, of_lines):
        assert [item.images[0].name for item in task.queries] == ["1.jpg", "2.jpg"]
    assert list(pickled.queries) == list(of_lines.queries) and list(pickled.gallery) == list(of_lines.gallery)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({**PICKLED, "more": Evil()}, "could run code"),
        ({"image_paths": []}, "is not of CC-Neg"),
        (PICKLED | {"image_paths": ["a.jpg"]}, "is not of CC-Neg"),
        (PICKLED | {"annotations": [{"json": {}}] * 3}, "row 0 has no json.caption"),
        (PICKLED | {"image_paths": ["/etc/passwd"] * 3}, "row 0: the path /etc/passwd leaves"),
        (PICKLED | {"image_paths": [7] * 3}, "row 0: \"image\" is '7'"),
        ({"image_paths": [], "annotations": []}, "has no rows"),
    ],
)
def test_bad_ccneg(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError) as error:
        ccneg_tasks(tmp_path / "a.pt", tmp_path, "released")
    assert words in str(error.value) and "a.pt" in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_broken_ccneg(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"no pickle")
    (tmp_path / "a.jsonl").write_text('{"image": "a.jpg", "caption": "a"}\n')
    for name, words in (("a.pt", "is broken"), ("a.jsonl", 'line 1 lacks "negative_caption"')):
        with pytest.raises(UserError, match=words):
            ccneg_tasks(tmp_path / name, tmp_path, "released")
