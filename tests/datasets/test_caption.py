"""Captioned pictures in both layouts, and one clear sentence for each way in which the files can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lamra.datasets.caption import load_captioned_images


def write(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def entry(filename: str, *captions: str, split: str = "test", **more) -> dict:
    return {"filename": filename, "split": split, "sentences": [{"raw": text} for text in captions], **more}


def test_lamra_eval_layout(tmp_path):
    folder = pictures(tmp_path / "images", "0.png", "1.png")
    data = load_captioned_images(folder, write(tmp_path / "text.json", [f"caption {i}" for i in range(10)]))
    assert [item.images for item in data.images] == [(folder / "0.png",), (folder / "1.png",)]
    assert [item.text for item in data.texts] == [f"caption {i}" for i in range(10)]
    assert data.image_of_text == [0] * 5 + [1] * 5
    assert data.texts[7].id == "1.png#2" and data.images[0].text is None


def test_karpathy_layout_takes_the_test_split_with_any_number_of_captions(tmp_path):
    folder = pictures(tmp_path / "images", "a.jpg", "val2014/b.jpg")
    images = [
        entry("a.jpg", "one", "two", filepath="val2014"),
        entry("training.jpg", "not used", split="train"),
        entry("b.jpg", "three", filepath="val2014"),
    ]
    data = load_captioned_images(folder, write(tmp_path / "dataset.json", {"images": images}))
    assert [item.images[0] for item in data.images] == [folder / "a.jpg", folder / "val2014/b.jpg"]
    assert [item.text for item in data.texts] == ["one", "two", "three"]
    assert data.image_of_text == [0, 0, 1]


@pytest.mark.parametrize("name", ["flickr8k", "coco"])
def test_real_karpathy_files(shared, name):
    folder = shared / "data" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: real Karpathy files are not tried")
    data = load_captioned_images(folder / "images", folder / f"dataset_{name}.json")
    assert len(data.images) == len(list((folder / "images").iterdir()))
    assert set(data.image_of_text) == set(range(len(data.images)))
    assert len({item.id for item in data.images + data.texts}) == len(data.images) + len(data.texts)


FIVE = [f"caption {i}" for i in range(5)]
WRONG = {
    "malformed json": ("{", r"text\.json is not json .*: write it again"),
    "neither layout": ({"rows": []}, r"text\.json is neither a list of captions nor an object"),
    "captions for two pictures": (FIVE * 2, r"text\.json has 10 captions and .*images pictures up to 0\.png"),
    "no captions": ([], r"text\.json has 0 captions"),
    "six captions": ([*FIVE, "one too many"], r"has 6 captions"),
    "empty caption": ([*FIVE[:4], " "], r"caption 5 of picture 0\.png in .*text\.json is ' ': write or remove it"),
    "caption is a number": ([*FIVE[:4], 5], r"caption 5 of picture 0\.png in .*text\.json is 5"),
    "no test split": ({"images": [entry("0.png", "a", split="train")]}, r'no picture with split "test"'),
    "no captions of a picture": ({"images": [entry("0.png")]}, r"picture 0\.png in .*text\.json has no caption"),
    "twice": ({"images": [entry("0.png", "a")] * 2}, r"picture 0\.png occurs twice in .*text\.json"),
    "no filename": ({"images": [{"split": "test"}]}, r"text\.json is not Karpathy's layout \(KeyError\('filename'\)\)"),
    "not an object": ({"images": ["0.png"]}, r"text\.json is not Karpathy's layout"),
    "above the folder": ({"images": [entry("../0.png", "a")]}, r"text\.json: the path \.\./0\.png leaves .*images"),
    "absolute": ({"images": [entry("/etc/hostname", "a")]}, r"the path /etc/hostname leaves"),
    "filepath above": ({"images": [entry("0.png", "a", filepath="..")]}, r"the path \.\./0\.png leaves"),
    "pictures missing": (
        {"images": [entry(name, "a") for name in ("0.png", "x.jpg", "y.jpg")]},
        r"2 of the 3 pictures of .*text\.json are missing in .*images, first x\.jpg: extract the pictures again",
    ),
}


@pytest.mark.parametrize(("content", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_wrong_files_are_named(tmp_path, content, sentence):
    folder = pictures(tmp_path / "images", "0.png")
    with pytest.raises(ValueError, match=sentence) as error:
        load_captioned_images(folder, write(tmp_path / "text.json", content))
    assert "\n" not in str(error.value)


def test_missing_folder_file_and_gap(tmp_path):
    captions = write(tmp_path / "text.json", FIVE * 3)
    with pytest.raises(ValueError, match=r"image folder .*images does not exist: bash scripts/download\.sh"):
        load_captioned_images(tmp_path / "images", captions)
    folder = pictures(tmp_path / "images", "0.png", "2.png")
    with pytest.raises(ValueError, match=r"1 of the 3 pictures .* missing in .*, first 1\.png"):
        load_captioned_images(folder, captions)
    with pytest.raises(ValueError, match=r"caption file .*absent\.json does not exist"):
        load_captioned_images(folder, tmp_path / "absent.json")
