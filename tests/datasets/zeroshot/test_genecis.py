"""GeneCIS: prompts byte for byte, galleries of their own, parts of pictures, a sentence for each way to be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from zeroshot_files import B, I, draw, embedded, reranked, write

from lamra.common.errors import UserError
from lamra.datasets.caption import PROTOCOLS
from lamra.datasets.items import Crop
from lamra.datasets.rankings import RankedQuery
from lamra.datasets.zeroshot.genecis import SUBSETS, genecis_tasks
from lamra.eval.metrics import measures

CHANGES = "I'm looking for a similar everyday image with the described changes."
SAME = "I'm looking for an image with the same attributes as described."


def objects(*ids: object, **more) -> dict:
    """A row of the pictures reference, target, gallery .."""
    reference, target, *gallery = ({"val_image_id": image} for image in ids)
    return {"condition": "toaster", "reference": reference, "target": target, "gallery": gallery} | more


def part(image: object, *box: object) -> dict:
    return {"image_id": image, "instance_bbox": list(box or (10, 20, 30, 40))}


def attributes(*parts: dict) -> dict:
    reference, target, *gallery = parts
    return {"condition": "red", "reference": reference, "target": target, "gallery": gallery}


PARTS = attributes(part(1), part(2), part(3))


def read(folder: Path, subset: str, rows: object, protocol: str = "released"):
    (task,) = genecis_tasks(write(folder / f"{subset}.json", rows), folder, protocol)
    return task


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("subset", "row", "asks"),
    [
        ("change_object", objects(1, 2, 3), f"[000000000001.jpg]{CHANGES} toaster"),
        ("focus_object", objects("1", 2, 3), f"[000000000001.jpg]{CHANGES} toaster"),
        ("change_attribute", attributes(part(1), part(2), part(3)), f"[1_0_0.jpg]{CHANGES} red"),
        ("focus_attribute", attributes(part(1), part(2), part(3)), f"[1_0_0.jpg]{SAME} red"),
    ],
)
def test_prompts(tmp_path, protocol, subset, row, asks):
    draw(tmp_path / "vg" / subset, "1_0_0.jpg")
    task = read(tmp_path, subset, [row], protocol)
    target = "000000000002.jpg" if subset.endswith("object") else "2_0_1.jpg"
    assert embedded(task.queries[0]) == asks + B
    assert embedded(task.gallery[0]) == f"[{target}]{I}"
    assert task.rerank_queries is None
    assert reranked(task.queries[0], task.gallery[0]) == f"Query:{asks}Candidate:[{target}]"


def test_the_target_stands_first_and_pictures_are_repeated(tmp_path):
    task = read(tmp_path, "change_object", [objects(1, 2, 3, "2", 4), objects(9, 4, 2, 3)])
    assert [item.id for item in task.gallery] == ["2", "3", "2#2", "4"]
    assert task.candidates == [[0, 1, 2, 3], [3, 0, 1]] and task.answers == [[0], [3]]
    assert task.gallery[0].content == task.gallery[2].content  # embedded once: they tie
    assert (task.name, task.headline, task.ks) == ("genecis_change_object", "recall@1", (1, 2, 3)) and task.tie_is_miss
    found = [RankedQuery(0, [0, 2, 3, 1], [0.9, 0.9, 0.5, 0.1]), RankedQuery(1, [3, 0, 1], [0.9, 0.2, 0.1])]
    assert measures(task, found)["recall@1"] == 0.5 and measures(task, found)["recall@2"] == 1.0


def test_which_files_are_read(tmp_path):
    for subset in SUBSETS:
        row = objects(1, 2, 3) if subset.endswith("object") else PARTS
        write(tmp_path / f"{subset}.json", [row])
    assert [task.name[8:] for task in genecis_tasks(tmp_path, tmp_path, "released")] == list(SUBSETS)
    (task,) = genecis_tasks(tmp_path, tmp_path, "released", "focus_object")
    assert task.files == {"annotations": tmp_path / "focus_object.json"}
    other = write(tmp_path / "mine.json", [objects(1, 2, 3)])
    assert genecis_tasks(other, tmp_path, "released", "focus_object")[0].name == "genecis_focus_object"
    with pytest.raises(UserError, match=r"mine\.json has no name of a subset: say with --data_type"):
        genecis_tasks(other, tmp_path, "released")
    with pytest.raises(
        UserError, match=r"--data_type focus_object: .*change_object\.json is change_object's by its name"
    ):
        genecis_tasks(tmp_path / "change_object.json", tmp_path, "released", "focus_object")
    with pytest.raises(UserError, match=r"GeneCIS: .*change_object\.json does not exist"):
        genecis_tasks(tmp_path / "none" / "change_object.json", tmp_path, "released")


def test_parts_are_cut_from_the_pictures_wherever_they_lie(tmp_path):
    one = part(1, 100, 50, 10, 20)
    row = attributes(one, part("2", 5, 8, 10.5, 20), part(2, 5, 8, 10, 20), one)

    def found(prefix: Path) -> list:
        (task,) = genecis_tasks(write(tmp_path / "change_attribute.json", [row]), prefix, "released")
        return [task.queries[0].images[0], *(item.images[0] for item in task.gallery)]

    draw(tmp_path / "a" / "vg" / "VG_100K", "1.jpg")
    draw(tmp_path / "a" / "vg" / "VG_100K_2", "2.jpg")
    images = found(tmp_path / "a")
    assert [image.path.relative_to(tmp_path / "a/vg") for image in images] == [
        Path("VG_100K/1.jpg"), Path("VG_100K_2/2.jpg"), Path("VG_100K_2/2.jpg"), Path("VG_100K/1.jpg"),
    ]  # fmt: skip
    assert images[0].box == (100 - 7, 50 - 14, 93 + 17, 36 + 34)  # it ends with the box
    assert images[1].box == pytest.approx((0, 0, 1.7 * 10.5, 34))  # at the border more is to the right of it
    assert images[0] == images[3] and str(images[1]) != str(images[2])
    assert found(tmp_path / "a" / "vg") == images
    draw(tmp_path / "b", "1.jpg", "2.jpg")
    assert found(tmp_path / "b")[1] == Crop(tmp_path / "b" / "2.jpg", images[1].box)
    draw(tmp_path / "a" / "vg" / "change_attribute", "1_0_0.jpg")
    assert found(tmp_path / "a")[1:3] == [tmp_path / "a/vg/change_attribute" / f"2_0_{n}.jpg" for n in (1, 2)]
    assert found(tmp_path / "a/vg/change_attribute")[0] == tmp_path / "a/vg/change_attribute/1_0_0.jpg"


def boxed(*box: object) -> list[dict]:
    """A row whose target has this box."""
    return [attributes(part(1), part(2, *box), part(3))]


WRONG = {
    "not json": ("change_object", "{", r"change_object\.json is not json"),
    "another data set": ("change_object", {"0": {}}, r"is no list of queries: give GeneCIS's change_object\.json"),
    "a row": ("change_object", [[]], r"row 0 is not an object but list"),
    "attributes": ("change_object", [PARTS], r'row 0 reference lacks "val_image_id": it has image_id'),
    "objects": ("focus_attribute", [objects(1, 2, 3)], r'row 0 reference lacks "image_id": it has val_image_id'),
    "no target": ("change_object", [{"condition": "a", "reference": {"val_image_id": 1}}], r'row 0 lacks "target"'),
    "no gallery": ("change_object", [objects(1, 2)], r'row 0: "gallery" is \'\[\]\': a list that is not empty'),
    "no condition": ("change_object", [objects(1, 2, 3, condition="")], r'row 0: "condition" is \'\': a text is'),
    "an id": ("change_object", [objects(1, 2, 3), objects(1, 2, 3, 4.5)], r"row 1 gallery 3: .* a string or a whole"),
    "above": ("change_object", [objects("/../../../../../1", 2, 3)], r"row 0 reference: the path .* leaves"),
    "a box": ("change_attribute", boxed(1, 2, 3), r"row 0 target: \"instance_bbox\" is '\[1, 2, 3\]': \[x, y, width"),
    "no number": ("change_attribute", boxed(1, 2, 3, "4"), r"row 0 target: \"instance_bbox\""),
    "no width": ("change_attribute", boxed(1, 2, 0, 4), r"row 0 target: .* is expected"),
}


@pytest.mark.parametrize(("subset", "rows", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_wrong_files_are_named(tmp_path, subset, rows, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        read(tmp_path, subset, rows)
    assert "\n" not in str(error.value)
