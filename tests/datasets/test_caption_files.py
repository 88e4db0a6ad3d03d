"""Captions in the layouts that people have: all are read as one, and what is none is told."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import pytest
from conftest import call

from lamra.common.errors import UserError
from lamra.datasets.caption import load_captioned_images
from lamra.eval import zeroshot


def shard(folder: Path, files: dict[str, bytes]) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return folder


def lines(rows: list, separator: str, header: tuple = ()) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows([header, *rows] if header else rows)
    return out.getvalue()


def write_layouts(folder: Path, images: Path, captions: list[list[str]]) -> dict[str, tuple[Path, Path]]:
    """Pictures 0.png ... with any number of captions in each layout: name -> image folder, captions."""
    names = [f"{row}.png" for row in range(len(captions))]
    named = list(zip(names, captions))
    flat = [(name, text) for name, texts in named for text in texts]
    content = {
        "lamra.json": [text for _, text in flat],
        "karpathy.json": {
            "images": [{"filename": n, "split": "test", "sentences": [{"raw": text} for text in t]} for n, t in named]
        },
        "coco.json": {
            "info": {},
            "images": [{"id": row + 7, "file_name": name} for row, name in enumerate(names)],
            "annotations": [
                {"id": number, "image_id": names.index(name) + 7, "caption": text}
                for number, (name, text) in reversed(list(enumerate(flat)))
            ][::-1],
        },
        "lavis.json": [{"image": f"val2014/{name}", "caption": texts} for name, texts in named],
        "lavis_train.json": [{"image_id": "a", "image": f"x/{name}", "caption": text} for name, text in flat],
    }
    text = {name: json.dumps(value) for name, value in content.items()}
    text["several.jsonl"] = "".join(json.dumps({"image": n, "captions": t}) + "\n" for n, t in named)
    text["single.jsonl"] = "".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in flat)
    text["comma.csv"] = lines(flat, ",", ("image", "caption"))
    text["open_clip.tsv"] = lines(flat, "\t", ("filepath", "title"))
    text["flickr30k.csv"] = "image_name| comment_number| comment\n" + "".join(f"{n}| 0| {t}\n" for n, t in flat)
    text["flickr8k.token"] = "".join(f"{n}#{row}\t{t}\n" for n, texts in named for row, t in enumerate(texts))
    text["bare.csv"] = lines(flat, ",")
    found = {}
    for name, value in text.items():
        (folder / name).write_text(value)
        found[name] = images, folder / name
    wds = folder / "wds"
    for number, rows in enumerate((range(6), range(6, len(names)))):
        files = {}
        for row in rows:
            files[f"s{row:07}.png"] = (images / names[row]).read_bytes()
            files[f"s{row:07}.txt"] = "\n".join(captions[row]).encode()
        shard(wds / "test" / f"{number}.tar", files)
    (wds / "test" / "nshards.txt").write_text("2")
    (wds / "dataset_type.txt").write_text("retrieval")
    return found | {"wds": (wds, wds)}


def test_all_layouts_of_the_same_pictures_give_one_metrics_json(world, tiny_model, tmp_path, capsys):
    texts = json.loads((world / "test" / "captions.json").read_text())
    captions = [texts[start : start + 5] for start in range(0, len(texts), 5)]
    captions[3][2] = 'A "quoted" word, and a comma'
    found = {}
    layouts = write_layouts(tmp_path, world / "test" / "images", captions)
    assert len(layouts) == 13
    for name, (images, file) in layouts.items():
        data = load_captioned_images(images, file)
        assert [item.text for item in data.texts] == [text for of_picture in captions for text in of_picture], name
        assert data.image_of_text == [row for row in range(11) for _ in range(5)] and len(data.images) == 11
        if name in ("lamra.json", "karpathy.json", "coco.json", "lavis.json", "several.jsonl", "comma.csv", "wds"):
            run = dict(model_id=tiny_model, image_data_path=images, text_data_path=file, num_workers=0)
            call(lambda: zeroshot.evaluate_captions("Flickr30K"), **run, output_dir=tmp_path / "out" / name)
            printed = capsys.readouterr().out
            assert f"note: {file}: {data.layout}, 11 pictures, 55 captions\n" in printed
            found[data.layout] = (tmp_path / "out" / name / "metrics.json").read_bytes()
    assert list(found) == [
        "LamRA_Eval's layout", "Karpathy's layout", "COCO captions", "LAVIS's layout", "jsonl", "a table",
        "CLIP_benchmark's shards",
    ]  # fmt: skip
    assert len(set(found.values())) == 1


PNG = {"s0.png": b"png", "s0.txt": b"a dog"}
WRONG = {
    "lavis without captions.json": ([{"image": "a.png"}], "entry 1 has no caption among image: a path is called"),
    "lavis without path.json": ([{"caption": "a"}], r"entry 1 has no path among caption"),
    "lavis of two kinds.json": ([{"image": "a.png", "caption": "a"}, "b"], "entry 2 has no path among no key, it is b"),
    "lavis with an empty list.json": ([{"image": "a.png", "caption": []}], "entry 1: picture a.png has no caption"),
    "lavis with a number.json": ([{"image": "a.png", "caption": 5}], "caption 1 of picture a.png in .* is 5"),
    "lavis with another path.json": ([{"image": 5, "caption": "a"}], "entry 1: the path of a picture is 5"),
    "lavis above.json": ([{"image": "../a.png", "caption": "a"}], r"entry 1: the path \.\./a\.png leaves"),
    "lavis absolute.json": ([{"image": "/etc/passwd", "caption": "a"}], r"entry 1: the path /etc/passwd leaves"),
    "coco without names.json": ({"images": [{"id": 1}], "annotations": []}, r"is not COCO's layout \(KeyError"),
    "coco of strings.json": ({"images": ["a"], "annotations": []}, r"is not COCO's layout \(TypeError"),
    "coco, id unknown.json": (
        {"images": [], "annotations": [{"image_id": 3, "caption": "a"}]}, "annotations name the image_id 3, which fits",
    ),
    "coco, id twice.json": ({"images": [{"id": 1, "file_name": "a"}] * 2, "annotations": []}, "an id occurs twice"),
    "coco without caption.json": (
        {"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}, "image 1: picture a.png has no caption",
    ),
    "coco of nothing.json": ({"images": [], "annotations": []}, "names no picture"),
    "an odd line.jsonl": ('{"image": "a.png", "caption": "a"}\n[1]\n', "line 2 is not an object but list"),
    "half a line.jsonl": ('{"image": "a.png", "caption": "a"}\n{"image"\n', "line 2 is not json"),
    "another key.jsonl": ('{"image": "a.png", "words": "a"}\n' * 2, "line 1 has no caption among image, words"),
    "another header.csv": ("picture_file,words\na.png,a\n", "is none of the known layouts .* its first line"),
    "one column.csv": ("caption\na\n", "is none of the known layouts"),
    "empty.csv": ("", "is not json"),
    "a text.txt": ("A dog runs.\n", "is none of the known layouts"),
    "no path.csv": ("image,caption\n,a\n", "line 2: the path of a picture is ''"),
    "no caption.csv": ("image,caption\na.png,\n", "caption 1 of picture a.png in .* is ''"),
    "a column less.csv": ("image,caption\na.png\n", "caption 1 of picture a.png in .* is None"),
    "a column less.tsv": ("image\tcaption\na.png\n", "line 2 has 1 columns, fewer than the first line"),
    "a swallowed row.csv": ('image,caption\na.png,"a\na.png,b\na.png,c"\n', "swallows rows"),
    "UTF-16 without a mark.csv": ("image,caption\na.png,é\n".encode("utf-16-le"), "none of the known layouts|UTF-8"),
    "picture.png": (b"\x89PNG\r\n\x1a\n", "is not UTF-8"),
    "missing.csv": ("image,caption\nb.png,a\n", "1 of the 1 pictures of .* are missing in"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_fits_no_layout_is_told_with_its_place(tmp_path, name):
    content, words = WRONG[name]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"png")
    raw = content if isinstance(content, bytes) else content.encode() if isinstance(content, str) else b""
    (tmp_path / name).write_bytes(raw or json.dumps(content).encode() if content != "" else b"")
    with pytest.raises(UserError, match=words) as error:
        load_captioned_images(tmp_path / "images", tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"0.tar": {"s0.png": b"png"}}, "0.tar: s0.png has no .txt of the same name with its captions"),
        ({"0.tar": {"s0.png": b"png", "s0.txt": b" \n"}}, "0.tar: s0.txt has no caption"),
        ({"0.tar": {"s0.cls": b"1"}}, "holds no picture"),
        ({"0.tar": {"../s0.png": b"png"}}, "0.tar is refused, it may be malicious: it holds '../s0.png'"),
        ({"0.tar": b"no tar"}, "0.tar is damaged"),
        ({"0.tar": PNG, "nshards.txt": b"2"}, "holds 1 tar files, and 2 are expected"),
        ({"notes.txt": b""}, "holds 0 tar files, and one or more are expected"),
        ({"0.tar": PNG, "dataset_type.txt": b"classification"}, "says 'classification': pictures with captions"),
        ({"0.tar": PNG, "../dataset_type.txt": b"classification"}, "says 'classification': pictures with captions"),
    ],
)
def test_shards_that_are_wrong_are_named(tmp_path, files, words):
    folder = tmp_path / "wds" / "test"
    folder.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, dict):
            shard(folder / name, content)
        else:
            (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_captioned_images(tmp_path, tmp_path / "wds")
    assert not (tmp_path.parent / "s0.png").exists()


def test_many_shards_keep_their_order_and_are_unpacked_once(tmp_path):
    for number in range(12):
        shard(tmp_path / f"{number}.tar", {"a/s.jpg": bytes(number), "a/s.txt": f"caption {number}\n".encode()})
    data = load_captioned_images(tmp_path, tmp_path)
    assert [item.text for item in data.texts] == [f"caption {number}" for number in range(12)]
    assert [item.id for item in data.images] == [f"{number}/a/s.jpg" for number in range(12)]
    before = (tmp_path / "11/a/s.jpg").stat()
    assert before.st_size == 11
    load_captioned_images(tmp_path, tmp_path)
    assert (tmp_path / "11/a/s.jpg").stat().st_mtime_ns == before.st_mtime_ns
    single = load_captioned_images(tmp_path, tmp_path / "3.tar")
    assert [item.text for item in single.texts] == ["caption 3"] and single.files == [tmp_path / "3.tar"]
