"""The miniature of the zero-shot suite: the readers take its files, and what counts as the answer is the right one."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_miniature import files, understood

from lamra.collators.pictures import open_image
from lamra.collators.videos import clip_of, frames_of
from lamra.datasets.items import Item
from lamra.datasets.tasks import RetrievalTask
from lamra.datasets.zeroshot.ccneg import ccneg_tasks
from lamra.datasets.zeroshot.circo import circo_tasks
from lamra.datasets.zeroshot.genecis import genecis_tasks
from lamra.datasets.zeroshot.msrvtt import msrvtt_tasks
from lamra.datasets.zeroshot.msvd import msvd_tasks
from lamra.datasets.zeroshot.multiturn_fashion import multiturn_fashion_tasks
from lamra.datasets.zeroshot.sharegpt4v import sharegpt4v_tasks
from lamra.datasets.zeroshot.sugar_crepe import sugar_crepe_tasks
from lamra.datasets.zeroshot.urban1k import urban1k_tasks
from lamra.datasets.zeroshot.visdial import visdial_tasks
from lamra.datasets.zeroshot.vist import vist_tasks
from lamra.miniature.world import COLOURS, NAMES, Scene, Shape, draw
from lamra.miniature.zeroshot import SETS, build_zeroshot

SIZE = 8
NOISE, CODED = 40, 90  # of 255: JPEG's, and a video's, whose colours are coarser than its grid


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zeroshot")
    build_zeroshot(folder, 1, SIZE)
    return folder


def picture_of(item: Item) -> Image.Image:
    (image,) = item.images
    return open_image(image)


def apart(picture: Image.Image, scene: Scene) -> np.ndarray:
    """(3, 3) how far the picture is from a scene's in each cell; JPEG's noise is below NOISE."""
    difference = np.abs(np.asarray(picture, float) - np.asarray(draw(scene), float))
    return difference.reshape(3, 28, 3, 28, 3).max(axis=(1, 3, 4))


def shows(item: Item, scene: Scene) -> bool:
    """Whether the picture is that of a scene."""
    return bool((apart(picture_of(item), scene) < NOISE).all())


def has(item: Item, scene: Scene) -> bool:
    """Whether the picture has these shapes among others."""
    found = apart(picture_of(item), scene)
    return all(found[divmod(shape.cell, 3)] < NOISE for shape in scene)


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


def test_clips_show_what_is_said(data):
    (moves,) = msrvtt_tasks(data / "msrvtt/annotations/MSRVTT_JSFUSION_test.csv", data / "msrvtt/videos", "released")
    texts, ids = data / "msvd/raw-captions.pkl", data / "msvd/test_list.txt"
    (still,) = msvd_tasks(data / "msvd/YouTubeClips", ids, texts, "released")
    assert len(moves.queries) == len(moves.gallery) == SIZE // 2 and len(still.queries) == 5 * len(still.gallery) == 5
    for task in (moves, still):
        for caption, clip in answers(task):
            (video,) = clip.visuals
            last = clip_of(video, "clip").frames - 1
            frames = [frame.resize((84, 84)) for frame in frames_of(video, [0, last], "clip")]
            before, _, new = caption.text.partition(", then ")
            assert (apart(frames[0], understood(before)) < CODED).all()
            if new:
                (moved,) = understood(new)
                assert apart(frames[1], frozenset({moved}))[divmod(moved.cell, 3)] < CODED
                assert apart(frames[0], frozenset({moved}))[divmod(moved.cell, 3)] > CODED


def test_galleries_have_one_answer(data):
    shapes = [Shape(*of) for of in itertools.product(range(9), COLOURS, NAMES)]
    drawn = np.stack([np.asarray(draw(frozenset({shape})).reduce(4), float) for shape in shapes])

    def shape_of(item: Item) -> Shape:
        return shapes[np.abs(drawn - np.asarray(picture_of(item).reduce(4), float)).mean(axis=(1, 2, 3)).argmin()]

    for task in genecis_tasks(data / "genecis/annotations", data / "genecis", "clean"):
        assert len(task.queries) == SIZE // 4
        for query, rows in zip(task.queries, task.candidates):
            target, *others = (task.gallery[row] for row in rows)
            assert len(others) == (9 if task.name == "genecis_focus_attribute" else 14)
            if task.name.endswith("attribute"):
                reference, found, *wrong = map(shape_of, (query, target, *others))
                named = "colour" if task.name == "genecis_change_attribute" else query.text
                wanted = replace(reference, colour=query.text) if named != query.text else found
                assert wanted == found != reference and getattr(found, named) == getattr(wanted, named)
                assert wanted not in wrong
                if named == query.text:
                    assert {getattr(shape, named) == getattr(reference, named) for shape in wrong} == {False}
                continue
            thing = Shape(0, *query.text.split())
            places = [frozenset({replace(thing, cell=cell)}) for cell in range(9)]
            assert any(has(target, place) for place in places)
            if task.name == "genecis_focus_object":
                assert any(has(query, place) for place in places)
            else:  # the reference has one shape less
                taken = [(apart(picture_of(item), frozenset()) > NOISE).sum() for item in (query, target)]
                assert taken[1] == taken[0] + 1


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
    edits, submitted = circo_tasks(data / "circo/annotations", data / "circo/unlabeled2017", "clean")
    assert [len(rows) for rows in edits.answers] == [1 + row % 4 for row in range(SIZE)]
    for row, rows in enumerate(edits.answers):
        query, answer = edits.queries[row], edits.gallery[rows[0]]
        gone, come = (understood(part) for part in re.split(r"(?<=\.) ", query.text))
        assert has(query, gone) and has(answer, come) and not has(answer, gone)
        assert submitted.queries[row].text == query.text and not submitted.answers[row]
    for query, answer in answers(story):
        assert len(query.images) == 4 and has(answer, understood(query.parts[-1].text.replace(" .", ".")))
    for query, answer in answers(garment):
        gone, come = (understood(part) for part in re.split(" and ", query.parts[-1].text))
        assert 2 <= len(query.images) <= 4 and has(answer, come) and not has(answer, gone)
        assert has(Item("", images=(query.images[-1],)), gone)
