"""ShareGPT4V (1,000 pairs): long captions and pictures search each other.

datas_for_validation.json, a list in which each row is a pair, with the pictures in one folder:
    {"image_name": "sa_000001.jpg", "caption": "The image shows a red bus beside ..."}
Long-CLIP takes for it the first 1,000 rows of Lin-Chen/ShareGPT4V's share-captioner file; the pictures are SA-1B's.

A reranker reads the tasks of clean: in released, the pictures that a caption finds have an instruction.
"""

from __future__ import annotations

from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import Row
from lamra.datasets.caption import CaptionedImages, captioned_tasks
from lamra.datasets.items import Item
from lamra.datasets.tasks import RetrievalTask
from lamra.datasets.zeroshot.fields import picture_path, read, text

NAME = "ShareGPT4V"


def sharegpt4v_tasks(image_data_path: str | Path, text_data_path: str | Path, protocol: str) -> list[RetrievalTask]:
    """Captions search pictures, and pictures captions, with captioned_tasks' protocols.

    Args:
        image_data_path: the folder of the pictures. Whether one is there is left to whoever opens it.
        text_data_path: the json.
        protocol: one of caption.PROTOCOLS.

    Raises:
        UserError: the file is missing or of another data set, a row is malformed.
    """
    text_data_path = Path(text_data_path)
    content = read(text_data_path, NAME)
    if not isinstance(content, list) or not content:
        raise UserError(f"{text_data_path} is no list of pictures with captions: give datas_for_validation.json")
    images: dict[str, Item] = {}
    texts = []
    for number, value in enumerate(content):
        row = Row(f"{text_data_path} row {number}", value)
        name = text(row, "image_name")
        if name in images:
            raise UserError(f"{row.location} has the picture {name} again: each has one caption, remove one row")
        path = picture_path(image_data_path, name, row.location)
        images[name] = Item(name, images=(path,))
        texts.append(Item(name, text(row, "caption")))
    data = CaptionedImages(list(images.values()), texts, list(range(len(texts))), files=[text_data_path])
    return captioned_tasks(data, NAME, text_data_path, protocol)
