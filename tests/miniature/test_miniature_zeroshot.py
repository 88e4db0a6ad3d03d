"""The miniature of the zero-shot suite: the readers take its files, and what counts as the answer is the right one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_miniature import files, understood

from lamra.datasets.items import Item
from lamra.datasets.tasks import RetrievalTask
from lamra.datasets.zeroshot.ccneg import ccneg_tasks
from lamra.datasets.zeroshot.multiturn_fashion import multiturn_fashion_tasks
from lamra.datasets.zeroshot.sharegpt4v import sharegpt4v_tasks
from lamra.datasets.zeroshot.sugar_crepe import sugar_crepe_tasks
from lamra.datasets.zeroshot.urban1k import urban1k_tasks
from lamra.datasets.zeroshot.visdial import visdial_tasks
from lamra.datasets.zeroshot.vist import vist_tasks
from lamra.miniature.world import Scene, draw
from lamra.miniature.zeroshot import SETS, build_zeroshot

SIZE = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zeroshot")
    build_zeroshot(folder, 1, SIZE)
    return folder


def shows(item: Item, scene: Scene) -> bool:
    """Whether the picture is that of a scene, JPEG's noise aside."""
    (image,) = item.images
    return bool(np.abs(np.asarray(Image.open(image), float) - np.asarray(draw(scene), float)).max() < 40)


def has(item: Item, scene: Scene) -> bool:
    """Whether the picture has these shapes among others."""
    (image,) = item.images
    difference = np.abs(np.asarray(Image.open(image), float) - np.asarray(draw(scene), float)).max(axis=2)
    cells = [(shape.cell // 3 * 28, shape.cell % 3 * 28) for shape in scene]
    return all(difference[top : top + 28, left : left + 28].max() < 40 for top, left in cells)


def answers(task: RetrievalTask) -> list[tuple[Item, Item]]:
    """Each query with its one answer."""
    return [(task.queries[row], task.gallery[answer]) for row, (answer,) in enumerate(task.answers)]


def test_files_are_seeded(data, tmp_path):
    assert {path.name for path in data.iterdir()} == SETS.keys()
    build_zeroshot(tmp_path / "same", 1, SIZE)
    build_zeroshot(tmp_path / "other", 2, SIZE)
    assert files(data) == files(tmp_path / "same") and files(data).keys() != files(tmp_path / "other").keys()


def test_captions_are_true_and_wrong(data):
    for task in sugar_crepe_tasks(data / "sugarcrepe/data", data / "sugarcrepe/images/val2017", "released"):
        assert len(task.queries) <= SIZE
        if "swap" not in task.name:
            assert len(task.queries) == SIZE
        for row, (picture, caption) in enumerate(answers(task)):
            negative = task.gallery[task.candidates[row][1]]
            if "add_att" in task.name:
                assert len(caption.text.split()) < len(negative.text.split())
            else:
                assert has(picture, understood(caption.text))
            assert not has(picture, understood(negative.text))
    (task,) = ccneg_tasks(data / "ccneg/ccneg_preprocessed.pt", data / "ccneg", "released")
    assert len(task.queries) == SIZE
    for row, (picture, caption) in enumerate(answers(task)):
        assert shows(picture, understood(caption.text))
        assert " and not a" in (negative := task.gallery[task.candidates[row][1]].text) and "," not in negative
        assert not has(picture, understood("A" + negative.partition(" but a")[2]))


def test_long_captions_and_dialogs_tell_their_pictures(data):
    share = sharegpt4v_tasks(data / "sharegpt4v/val_data", data / "sharegpt4v/datas_for_validation.json", "released")
    urban = urban1k_tasks(data / "urban1k/image", data / "urban1k/caption", "released")
    for task in (share[0], urban[0]):
        assert len(task.queries) == len(task.gallery) == SIZE
        for caption, picture in answers(task):
            *_, last = re.findall(r"[^.]+\.", caption.text)
            assert caption.text.count(".") >= 3 and shows(picture, understood(last))
    dialogs = data / "visdial/visdial_1.0_val.json"
    task, _ = visdial_tasks(dialogs, data / "visdial/VisualDialog_val2018", "released")
    assert len(task.queries) == SIZE
    for dialog, picture in answers(task):
        assert dialog.text.count("Q: ") == dialog.text.count("? A: ") == 10
        told = re.findall(r"what is at ([^?]+)\? A: (an? \w+ \w+)", dialog.text)
        assert shows(picture, understood(" and ".join(f"{thing} at {place}" for place, thing in told)))


def test_stories_and_garments_lead_to_their_answers(data):
    """The last text tells what is new, and the last picture has it."""
    stories = data / "vist/sis/val.story-in-sequence.json"
    (story,) = vist_tasks(stories, data / "vist/images/val", "clean")
    turns, gallery = (
        data / "multiturn_fashion" / name for name in ("data/all.val.json", "image_splits/split.all.val.json")
    )
    (garment,) = multiturn_fashion_tasks(turns, gallery, data / "multiturn_fashion/images", "clean")
    assert len(story.queries) == len(garment.queries) == SIZE and len(story.gallery) == 5 * SIZE
    assert len(json.loads(gallery.read_text())) == len(garment.gallery) + 1
    for query, answer in answers(story):
        assert len(query.images) == 4 and has(answer, understood(query.parts[-1].text.replace(" .", ".")))
    for query, answer in answers(garment):
        gone, come = (understood(part) for part in re.split(" and ", query.parts[-1].text))
        assert 2 <= len(query.images) <= 4 and has(answer, come) and not has(answer, gone)
        assert has(Item("", images=(query.images[-1],)), gone)
