"""ShareGPT4V and Urban1K: prompts byte for byte in both protocols, and a sentence for each way to be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from zeroshot_files import B, I, T, draw, embedded, reranked, write

from lamra.common.errors import UserError
from lamra.datasets import caption
from lamra.datasets.tasks import Reported, RetrievalTask
from lamra.datasets.zeroshot.sharegpt4v import sharegpt4v_tasks
from lamra.datasets.zeroshot.urban1k import RELEASED_MAX_PIXELS, urban1k_tasks

FIND_TEXT = "Find an image caption describing the following everyday image."
FIND_PICTURE = "Find me an everyday image that matches the given caption."
PAIRS = [{"image_name": "a.jpg", "caption": "A red bus."}, {"image_name": "b.jpg", "caption": "A cat."}]


def sharegpt4v(folder: Path, value: object = PAIRS, protocol: str = "released") -> list[RetrievalTask]:
    pictures = draw(folder / "val_data", "a.jpg", "b.jpg")
    return sharegpt4v_tasks(pictures, write(folder / "pairs.json", value), protocol)


def urban1k(folder: Path, captions: dict[str, str | bytes], protocol: str = "released") -> list[RetrievalTask]:
    pictures = draw(folder / "image", "1.jpg", "2.jpg", "10.jpg")
    (folder / "caption").mkdir()
    for name, content in captions.items():
        (folder / "caption" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return urban1k_tasks(pictures, folder / "caption", protocol)


CAPTIONS = {"10.txt": "Ten.", "2.txt": "  A cat. \nMore.", "1.txt": "A red bus.\n"}


@pytest.mark.parametrize(
    ("read", "picture", "released"),
    [
        (lambda folder, protocol: sharegpt4v(folder, protocol=protocol), "[a.jpg]", FIND_TEXT),
        (lambda folder, protocol: urban1k(folder, CAPTIONS, protocol), "[1.jpg]", "{'" + FIND_TEXT + "'}"),
    ],
    ids=["ShareGPT4V", "Urban1K"],
)
def test_prompts(tmp_path, read, picture, released):
    (tmp_path / "released").mkdir()
    (tmp_path / "clean").mkdir()
    by_caption, by_picture = read(tmp_path / "released", "released")
    assert embedded(by_caption.queries[0]) == embedded(by_picture.gallery[0]) == f"A red bus.{T}"
    assert embedded(by_caption.gallery[0]) == embedded(by_picture.queries[0]) == f"{picture}{released}{B}"
    by_caption, by_picture = read(tmp_path / "clean", "clean")
    assert embedded(by_caption.queries[0]) == f"{FIND_PICTURE} A red bus.{T}"
    assert embedded(by_picture.gallery[0]) == f"A red bus.{T}"
    assert embedded(by_caption.gallery[0]) == f"{picture}{I}"
    assert embedded(by_picture.queries[0]) == f"{picture}{FIND_TEXT}{B}"
    # A reranker reads the queries and candidates of clean.
    shown = reranked(by_caption.queries[0], by_caption.gallery[0])
    assert shown == f"Query:{FIND_PICTURE} A red bus.Candidate:{picture}"
    shown = reranked(by_picture.queries[0], by_picture.gallery[0])
    assert shown == f"Query:{picture}{FIND_TEXT}Candidate:A red bus."


def test_pairs_and_the_papers_numbers(tmp_path, monkeypatch):
    (tmp_path / "urban").mkdir()
    for read, pairs, paper in (
        (lambda: sharegpt4v(tmp_path), 2, [Reported(93.3, 97.9), Reported(88.1, 96.5)]),
        (lambda: urban1k(tmp_path / "urban", CAPTIONS), 3, [Reported(95.1, 98.8), Reported(94.3, 98.0)]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(caption, "PAPER_PICTURES", pairs)
            tasks = read()
        assert [task.name for task in tasks] == ["image_retrieval", "text_retrieval"]
        assert [task.reported for task in tasks] == paper
        for task in tasks:
            assert [item.id for item in task.queries] == [item.id for item in task.gallery]
            assert task.answers == [[row] for row in range(len(task.queries))]
            assert (task.ks, task.weight) == ((1, 5, 10), 1)
    assert [item.text for item in tasks[0].queries] == ["A red bus.", "A cat.", "Ten."]  # in the order of numbers
    assert {path.name for path in tasks[0].files.values()} == set(CAPTIONS)
    assert RELEASED_MAX_PIXELS == 12845056


WRONG = {
    "not json": ("{", r"pairs\.json is not json"),
    "another data set": ({"images": []}, r"pairs\.json is no list of pictures with captions"),
    "its source": ([{"id": "a", "image": "a.jpg"}], r'pairs\.json row 0 lacks "image_name": it has id, image'),
    "captions alone": (["A cat."], r"pairs\.json row 0 is not an object but str"),
    "no caption": ([PAIRS[0], {"image_name": "b.jpg"}], r'pairs\.json row 1 lacks "caption"'),
    "empty": ([PAIRS[0], {"image_name": "b.jpg", "caption": " "}], r'row 1: "caption" is \' \': a text is expected'),
    "number": ([{"image_name": 1, "caption": "A"}], r'row 0: "image_name" is \'1\''),
    "twice": ([PAIRS[0], PAIRS[0]], r"row 1 has the picture a\.jpg again"),
    "above": ([{"image_name": "../a.jpg", "caption": "A"}], r"row 0: the path \.\./a\.jpg leaves"),
}


@pytest.mark.parametrize(("value", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_wrong_pairs_are_named(tmp_path, value, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        sharegpt4v(tmp_path, value)
    assert "\n" not in str(error.value)


WRONG_FOLDERS = {
    "no captions": ({}, r"Urban1K: .*caption holds no 1\.txt"),
    "empty": ({**CAPTIONS, "2.txt": ""}, r"the first line of .*2\.txt is empty"),
    "blank": ({**CAPTIONS, "2.txt": "\nA cat."}, r"the first line of .*2\.txt is empty"),
    "encoding": ({**CAPTIONS, "2.txt": "café".encode("latin-1")}, r"2\.txt.*UTF-8"),
    "no caption": ({"1.txt": "A", "2.txt": "B"}, r"picture 10\.jpg of .*image has no \.txt in .*caption"),
}


@pytest.mark.parametrize(("captions", "sentence"), WRONG_FOLDERS.values(), ids=WRONG_FOLDERS.keys())
def test_wrong_folders_are_named(tmp_path, captions, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        urban1k(tmp_path, captions)
    assert "\n" not in str(error.value)


def test_real_files(shared):
    folders = [shared / "data" / name for name in ("sharegpt4v", "Urban1k")]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        pytest.skip(f"{' and '.join(missing)} are absent: the real pairs are not read")
    pairs = sharegpt4v_tasks(folders[0] / "val_data", folders[0] / "datas_for_validation.json", "released")
    assert len(pairs[0].queries) == len(urban1k_tasks(folders[1] / "image", folders[1] / "caption", "clean")[0].queries)
