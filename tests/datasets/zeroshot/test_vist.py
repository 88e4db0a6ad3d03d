"""VIST: prompts byte for byte in both protocols, what is left out, and a sentence for each way to be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from zeroshot_files import I, M, draw, embedded, reranked, write

from lamra.common.errors import UserError
from lamra.datasets.tasks import Reported, RetrievalTask
from lamra.datasets.zeroshot import vist
from lamra.datasets.zeroshot.vist import vist_tasks

ASKS = (
    "I will provide you with a series of images and captions from a story, and I need you to retrieve the image "
    "corresponding to the last caption."
)


def rows(story: object, *photos: object) -> list:
    """A story with all fields that a published row has."""
    return [
        [
            {
                "original_text": f"Text {place}.",
                "album_id": "44",
                "photo_flickr_id": photo,
                "setting": "first-2-pick-and-tell",
                "worker_id": "F1",
                "story_id": story,
                "tier": "story-in-sequence",
                "worker_arranged_photo_order": place,
                "text": f"text {place} .",
                "storylet_id": "1",
            }
        ]
        for place, photo in enumerate(photos)
    ]


STORY = rows("45", "1", "2", "3", "4", "5")


def read(folder: Path, value: object, protocol: str = "released") -> RetrievalTask:
    photos = draw(folder / "photos", "1.jpg", "2.png", "3.gif", "4.jpg", "5.jpg", "6.jpg")
    content = {"images": [], "albums": [], "annotations": value} if isinstance(value, list) else value
    (task,) = vist_tasks(write(folder / "val.json", content), photos, protocol)
    return task


def test_prompts(tmp_path):
    three = f"{ASKS}text 0 .[1.jpg]text 1 .[2.png]text 2 .[3.gif]"
    four = f"{three}text 3 .[4.jpg]"
    for protocol, begin in (("released", three), ("clean", four)):
        task = read(tmp_path, STORY, protocol)
        assert embedded(task.queries[0]) == f"{begin}text 4 .{M}"
        assert embedded(task.gallery[4]) == f"[5.jpg]{I}"
        assert reranked(task.rerank_queries[0], task.gallery[4]) == f"Query:{four}text 4 .Candidate:[5.jpg]"


def test_shown_photos_are_left_out_and_a_story_that_ends_with_one_is_a_miss(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vist, "PUBLISHED", 3)
    task = read(tmp_path, STORY + rows(46, 6, 5, 5, 4, "1") + rows("47", "1", "2", "3", "4", "2"))
    assert [item.id for item in task.gallery] == ["1", "2", "3", "4", "5", "6"]
    assert [item.id for item in task.queries] == ["45", "46", "47"]
    assert task.answers == [[4], [0], []]
    assert task.excluded == [[0, 1, 2, 3], [3, 4, 5], [0, 1, 2, 3]]
    assert (task.name, task.reported, task.counted, task.weight) == ("image_retrieval", Reported(23.1, 28.6), 1, 1)
    said = capsys.readouterr().out
    assert "1 of 3 stories end with a photo that they show before" in said and "first story 47" in said


def test_rows_keep_the_order_of_the_file_and_a_different_one_is_told(tmp_path, capsys):
    read(tmp_path, STORY)
    assert not capsys.readouterr().out
    task = read(tmp_path, [STORY[1], STORY[0], *STORY[2:]])
    assert task.queries[0].texts[1:3] == ("text 1 .", "text 0 .")
    assert "1 stories have rows in another order" in capsys.readouterr().out


def changed(**fields: object) -> list:
    return [STORY[0], [{**STORY[1][0], **fields}], *STORY[2:]]


WRONG = {
    "not json": ("{", r"val\.json is not json"),
    "another data set": ({"data": {}}, r'val\.json lacks "annotations": it has data'),
    "empty": ([], r'val\.json: "annotations" is'),
    "not nested": ([STORY[0][0]], r"annotation 0 is no list of one row: give VIST's val\.story-in-sequence\.json"),
    "no object": ([["a"]], r"annotation 0 is not an object but str"),
    "isolated": (changed(tier="description-in-isolation"), r"annotation 1: \"tier\" is 'description-in-isolation'"),
    "no text": ([[{"tier": "story-in-sequence", "story_id": 1, "photo_flickr_id": 1}]], r'annotation 0 lacks "text"'),
    "text": (changed(text=None), r"annotation 1: \"text\" is 'None': a string is expected"),
    "photo": (changed(photo_flickr_id=[1]), r'annotation 1: "photo_flickr_id" is'),
    "order": (changed(worker_arranged_photo_order="1"), r'annotation 1: "worker_arranged_photo_order" is'),
    "above": (changed(photo_flickr_id="../1"), r"annotation 1: the path \.\./1\.jpg leaves"),
    "four": (STORY[:4], r"val\.json: story 45 has 4 rows and not 5"),
}


@pytest.mark.parametrize(("value", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_wrong_files_are_named(tmp_path, value, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        read(tmp_path, value)
    assert "\n" not in str(error.value)


def test_real_file(shared):
    path = shared / "data/vist/sis/val.story-in-sequence.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent: VIST's real stories are not read")
    (task,) = vist_tasks(path, path.parents[1] / "images/val", "released")
    assert len(task.queries) == 4990
