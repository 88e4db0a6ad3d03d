"""Visual Storytelling (VIST, val): four photos and five sentences of a story search its fifth photo.

val.story-in-sequence.json of visionandlanguage.net (SIS-with-labels.tar.gz), five rows in turn for each story:
    {"annotations": [[{"text": "the fair opens .", "photo_flickr_id": "17", "story_id": "45",
     "tier": "story-in-sequence", "worker_arranged_photo_order": 0, ..}], ..], "images": [..], "albums": [..]}
The photos are <photo id>.jpg, .png or .gif in one folder; the gallery has each photo of any story once. A story's first
four photos are left out of its ranking, as FROMAGe does (kohjingyu/fromage).

released: the query lacks the fourth sentence and photo, as the paper's numbers were measured. clean: it has all four.
A reranker reads all four in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.files import Row
from lamra.datasets.items import Item, Part, Picture, Text
from lamra.datasets.tasks import ItemList, Reported, RetrievalTask
from lamra.datasets.zeroshot.fields import identifier, listed, picture_path, read, text, whole_number

NAME, TIER, PHOTOS = "VIST", "story-in-sequence", 5
PUBLISHED = 4990  # stories of the published file
PAPER = Reported(23.1, 28.6)  # R@1 (arXiv 2412.01720)
INSTRUCTION = (
    "I will provide you with a series of images and captions from a story, and I need you to retrieve the image "
    "corresponding to the last caption."
)
SHOWN = {"released": 3, "clean": 4}  # sentences with their photos before the last sentence
SUFFIXES = (".jpg", ".png", ".gif")


class Story(NamedTuple):
    id: str
    sentences: list[str]
    photos: list[str]


def vist_tasks(data_path: str | Path, image_path_prefix: str | Path, protocol: str) -> list[RetrievalTask]:
    """Stories search their last photo. One whose last photo is among its first four cannot be answered: a miss, told.

    Args:
        image_path_prefix: the folder of the photos. Whether one is there is left to whoever opens it.
        protocol: one of caption.PROTOCOLS.

    Raises:
        UserError: the file is missing or of another data set, a row is malformed.
    """
    data_path = Path(data_path)
    stories, place_of = _stories(data_path)
    path_of = {photo: _photo(image_path_prefix, photo, location) for photo, location in place_of.items()}
    row_of = {photo: row for row, photo in enumerate(path_of)}
    told = [story.photos[-1] in story.photos[:-1] for story in stories]
    if any(told):
        note(
            f"{data_path}: {sum(told)} of {len(told)} stories end with a photo that they show before, which is left "
            f"out of their ranking: they count as misses, first story {stories[told.index(True)].id}"
        )

    def queries(shown: int, name: str) -> ItemList:
        return ItemList([_query(story, path_of, shown) for story in stories], f"{NAME} {name}", data_path)

    return [
        RetrievalTask(
            "image_retrieval",
            queries(SHOWN[protocol], "stories"),
            ItemList([Item(photo, images=(path,)) for photo, path in path_of.items()], f"{NAME} photos", data_path),
            [[] if lost else [row_of[story.photos[-1]]] for story, lost in zip(stories, told)],
            excluded=[sorted({row_of[photo] for photo in story.photos[:-1]}) for story in stories],
            reported=PAPER if len(stories) == PUBLISHED else None,
            files={"stories": data_path},
            rerank_queries=queries(PHOTOS - 1, "whole stories"),
        )
    ]


def _query(story: Story, path_of: dict[str, Path], shown: int) -> Item:
    parts: list[Part] = [Text(INSTRUCTION)]
    for sentence, photo in zip(story.sentences[:shown], story.photos):
        parts += [Text(sentence), Picture(path_of[photo])]
    return Item(story.id, parts=[*parts, Text(story.sentences[-1])], plural=True)


def _photo(folder: str | Path, photo: str, location: str) -> Path:
    paths = [picture_path(folder, photo + suffix, location) for suffix in SUFFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


def _stories(path: Path) -> tuple[list[Story], dict[str, str]]:
    """The stories in the file's order, and of each photo where it stands first."""
    content = Row(str(path), read(path, NAME))
    stories: dict[str, Story] = {}
    place_of: dict[str, str] = {}
    order: dict[str, list[int]] = {}
    for number, value in enumerate(listed(content, str(path), "annotations")):
        location = f"{path} annotation {number}"
        if not isinstance(value, list) or len(value) != 1:
            raise UserError(f"{location} is no list of one row: give {NAME}'s val.{TIER}.json")
        row = Row(location, value[0])
        if row["tier"] != TIER:
            raise UserError(f'{location}: "tier" is {str(row["tier"])[:80]!r}: give {NAME}\'s val.{TIER}.json')
        story_id, photo = identifier(row, "story_id"), identifier(row, "photo_flickr_id")
        story = stories.setdefault(story_id, Story(story_id, [], []))
        story.sentences.append(text(row, "text", blank=True))
        story.photos.append(photo)
        place_of.setdefault(photo, location)
        order.setdefault(story_id, []).append(whole_number(row, "worker_arranged_photo_order"))
    for story in stories.values():
        if len(story.photos) != PHOTOS:
            raise UserError(f"{path}: story {story.id} has {len(story.photos)} rows and not {PHOTOS}: get it again")
    if other := [story_id for story_id, places in order.items() if places != sorted(places)]:
        note(
            f"{path}: {len(other)} stories have rows in another order than worker_arranged_photo_order says, first "
            f"story {other[0]}: they are read in the file's order, as LamRA does"
        )
    return list(stories.values()), place_of
