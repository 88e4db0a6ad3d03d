"""CC-Neg (jaisidhsingh/CoN-CLIP, MIT; pictures: CC3M): each picture with its caption and one that negates some of it.

ccneg_preprocessed.pt is a pickle, whose last 40,000 rows are the test set:
    {"image_paths": ["/workspace/datasets/cc3m/cc3m_subset_images_extracted_final/1.jpg"],
     "annotations": [{"json": {"caption": "a dog"}, "sop_data": {"negative-prompt": "not a dog, but a cat"}}]}
Or a jsonl, all lines of which are used:
    {"image": "cc3m_subset_images_extracted_final/1.jpg", "caption": "a dog", "negative_caption": "not a dog, but .."}

Commas are removed from the false caption alone, as the authors' own loader does: a shortcut for who scores it, kept so
that numbers compare.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import Row, read_jsonl
from lamra.datasets.tasks import Reported, RetrievalTask
from lamra.datasets.zeroshot.fields import picture_path, text
from lamra.datasets.zeroshot.pairs import CaptionPair, pair_task

TEST_ROWS = 40_000
PREFIX = "/workspace/datasets/cc3m/"  # of the authors' machine
PAPER = Reported(79.6, 85.9)  # accuracy (arXiv 2412.01720)
GET = "the links to it are in https://github.com/jaisidhsingh/CoN-CLIP"
FORMAT = '{"image", "caption", "negative_caption"}'


def ccneg_tasks(annotations: str | Path, pictures: str | Path, protocol: str) -> list[RetrievalTask]:
    """The one task, "ccneg".

    Args:
        annotations: the pickle (.pt), of which nothing but plain data is loaded, or a jsonl.
        pictures: the folder above cc3m_subset_images_extracted_final. Whether one is there is left to whoever opens it.
        protocol: "released" or "clean"; here both are the same.

    Raises:
        UserError: the file is missing, could run code, is of another data set, or a row is malformed; names file and
            row.
    """
    path, rows = Path(annotations), []
    if not path.is_file():
        raise UserError(f"CC-Neg's {path} does not exist: {GET}")
    for number, row in enumerate(read_jsonl(path) if path.suffix == ".jsonl" else _of_pickle(path)):
        image, caption, negative = (text(row, name) for name in ("image", "caption", "negative_caption"))
        picture = picture_path(pictures, image.removeprefix(PREFIX), row.location)
        rows.append(CaptionPair(str(number), picture, caption, negative.replace(",", "")))
    if not rows:
        raise UserError(f"{path} has no rows: give CC-Neg's file")
    return [pair_task("ccneg", rows, path, reported=PAPER if len(rows) == TEST_ROWS else None)]


def _of_pickle(path: Path) -> Iterator[Row]:
    import torch  # slow to import

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{path} is broken, or holds more than plain data and could run code ({str(error).splitlines()[0][:80]}): "
            f"where you trust it, write its last {TEST_ROWS} rows as a .jsonl of {FORMAT} and give that"
        ) from None
    match content:
        case {"image_paths": list(images), "annotations": list(rows)} if len(images) == len(rows):
            pass
        case _:
            raise UserError(f"{path} is not of CC-Neg: image_paths and as many annotations are expected")
    for number in range(max(0, len(rows) - TEST_ROWS), len(rows)):
        location = f"{path}, row {number}"
        match rows[number]:
            case {"json": {"caption": caption}, "sop_data": {"negative-prompt": negative}}:
                yield Row(location, {"image": images[number], "caption": caption, "negative_caption": negative})
            case _:
                raise UserError(
                    f"{location} has no json.caption or no sop_data.negative-prompt: CC-Neg's rows have both"
                )
