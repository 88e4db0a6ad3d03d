"""CIRCO: a picture and what is to change in it search 123,403 pictures, and most queries have several answers.

miccunifi/CIRCO (CC BY-NC 4.0), annotations/val.json and test.json, lists in which "id" is the row's number:
    {"reference_img_id": 85, "target_img_id": 97, "relative_caption": "is held by a girl", "shared_concept": "a teddy
     bear", "gt_img_ids": [97, 48], "id": 13, "semantic_aspects": ["addition"]}
Rows of test have no target_img_id, gt_img_ids and semantic_aspects: a server judges the rankings. COCO's
image_info_unlabeled2017.json, {"images": [{"id": 85, "file_name": "000000000085.jpg", ..}], ..}, names the gallery. It
is read beside val.json, where LamRA has it, or in ../COCO2017_unlabeled/annotations, where CIRCO has it.

The reference stays in its ranking, as in the authors' evaluation. The protocols are the same here. A reranker reads the
instruction without its full stop, as LamRA-Rank does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import Row, whole_file
from lamra.datasets.items import Item
from lamra.datasets.rankings import Ranking
from lamra.datasets.tasks import ItemList, Reported, RetrievalTask
from lamra.datasets.zeroshot.fields import identifier, listed, picture_path, read, text

NAME, SPLITS = "CIRCO", ("val", "test")
IMAGE_INFO = "image_info_unlabeled2017.json"
PUBLISHED = 800, 123_403  # queries of test, pictures
PAPER = Reported(33.2, 42.8)  # mAP@5 on test (arXiv 2412.01720)
INSTRUCTION = "I'm looking for a similar everyday image with the described changes"
KS, COUNTED = (5, 10, 25, 50), 5
GET = "bash scripts/download.sh circo gets it"
SERVER, SUBMITTED = "https://circo.micc.unifi.it", 50  # candidates of each query


def circo_tasks(
    annotation_path_prefix: str | Path,
    image_path_prefix: str | Path,
    protocol: str,
    splits: Sequence[str] = SPLITS,
) -> list[RetrievalTask]:
    """A task for each split, "circo_val" and "circo_test", which share the gallery. Nothing is measured on test.

    Args:
        annotation_path_prefix: the folder of val.json and test.json.
        image_path_prefix: COCO's unlabeled2017. Whether a picture is there is left to whoever opens it.
        protocol: one of caption.PROTOCOLS.

    Raises:
        UserError: a file is missing or of another data set or split, a row is malformed, or names a picture that is not
            in the gallery.
    """
    folder = Path(annotation_path_prefix)
    beside = folder / IMAGE_INFO, folder.parent / "COCO2017_unlabeled" / "annotations" / IMAGE_INFO
    info = next((path for path in beside if path.is_file()), beside[0])
    path_of: dict[str, Path] = {}
    content = Row(str(info), read(info, NAME))
    for number, value in enumerate(listed(content, str(info), "images")):
        row = Row(f"{info} image {number}", value)
        image = identifier(row, "id")
        if image in path_of or not image.isdecimal():
            raise UserError(f"{row.location}: its id {image} stands there before or is no number: get the file again")
        path_of[image] = picture_path(image_path_prefix, text(row, "file_name"), row.location)
    gallery = ItemList([Item(image, images=(path,)) for image, path in path_of.items()], f"{NAME} pictures", info)
    return [_task(folder / f"{split}.json", split, gallery, path_of) for split in splits]


def _task(path: Path, split: str, gallery: ItemList, path_of: dict[str, Path]) -> RetrievalTask:
    content = read(path, NAME)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} is no list of queries: give {NAME}'s {split}.json")
    row_of = {image: row for row, image in enumerate(path_of)}
    retrieved: list[Item] = []
    reranked: list[Item] = []
    answers: list[list[int]] = []
    aspects: list[list[str]] = []
    for number, value in enumerate(content):
        row = Row(f"{path} row {number}", value)

        def known(image: object, name: str, location: str = row.location) -> str:
            found = identifier(Row(location, {name: image}), name)
            if found not in row_of:
                raise UserError(
                    f"{location}: its {name} {found} is not in {gallery.path}: give {NAME}'s and COCO's files"
                )
            return found

        if identifier(row, "id") != str(number):
            raise UserError(
                f"{row.location} has the id {row['id']}: {NAME}'s rows are numbered from 0, get the file again"
            )
        if split == "test" and "gt_img_ids" in row:
            raise UserError(f"{row.location} has answers, and test has none: give {NAME}'s test.json, or --split val")
        reference = path_of[known(row["reference_img_id"], "reference_img_id")]
        caption = text(row, "relative_caption")
        for items, instruction in ((retrieved, f"{INSTRUCTION}."), (reranked, INSTRUCTION)):
            items.append(Item(str(number), caption, (reference,), instruction))
        if split == "test":
            answers.append([])
            continue
        target = known(row["target_img_id"], "target_img_id")
        found = [known(image, "gt_img_ids") for image in listed(row, row.location, "gt_img_ids")]
        if target not in found:
            raise UserError(f"{row.location}: its target {target} is not in its gt_img_ids: get the file again")
        answers.append([row_of[image] for image in dict.fromkeys((target, *found))])
        aspects.append([str(aspect) for aspect in listed(row, row.location, "semantic_aspects")])
    published = split == "test" and (len(retrieved), len(gallery)) == PUBLISHED
    return RetrievalTask(
        f"circo_{split}",
        ItemList(retrieved, f"{NAME} {split} queries", path),
        gallery,
        answers,
        ks=KS,
        measure="map",
        counted=COUNTED,
        aspects=aspects or None,
        server=SERVER if split == "test" else None,
        reported=PAPER if published else None,
        files={"queries": path, "gallery": Path(gallery.path)},
        rerank_queries=ItemList(reranked, f"{NAME} {split} questions", path),
    )


def write_submission(path: Path, task: RetrievalTask, ranking: Ranking) -> None:
    """Write what CIRCO's server judges: {"0": [ids of the first 50], "1": ..}, ids as whole numbers."""
    first = {
        task.queries.id(ranked.query): [int(task.gallery.id(row)) for row in ranked.candidates[:SUBMITTED]]
        for ranked in sorted(ranking, key=lambda ranked: ranked.query)
    }
    with whole_file(path) as file:
        file.write(json.dumps(first) + "\n")
