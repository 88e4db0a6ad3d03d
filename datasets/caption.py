"""Captioned pictures for Flickr30K and COCO retrieval, and the tasks both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lamra.common.errors import UserError
from lamra.common.files import as_on_disk
from lamra.datasets.caption_files import read_captions
from lamra.datasets.items import Item, is_blank
from lamra.datasets.tasks import ItemList, Reported, RetrievalTask

PROTOCOLS = ("released", "clean")
INSTRUCTION_TEXT_TO_IMAGE = "Find me an everyday image that matches the given caption."
INSTRUCTION_IMAGE_TO_TEXT = "Find an image caption describing the following everyday image."
# R@1 of LamRA-Ret and with LamRA-Rank, captions to pictures and back, in percent (arXiv 2412.01720).
PAPER = {
    "Flickr30K": (Reported(82.8, 88.1), Reported(92.7, 97.6)),
    "ShareGPT4V": (Reported(93.3, 97.9), Reported(88.1, 96.5)),
    "Urban1K": (Reported(95.1, 98.8), Reported(94.3, 98.0)),
}
PAPER_PICTURES = 1000  # in each of these
RERANK_WEIGHTS = {"COCO": (0.5, 0.1)}  # LamRA's; 1 for all others


@dataclass(frozen=True)
class CaptionedImages:
    """Pictures and captions to retrieve from one another: caption i describes images[image_of_text[i]].

    Attributes:
        layout: of the files that they were read from; what to call it.
        files: these.
    """

    images: list[Item]
    texts: list[Item]
    image_of_text: list[int]
    layout: str = ""
    files: Sequence[Path] = ()

    def without(self, lost: np.ndarray) -> CaptionedImages:
        """The same as if some pictures and their captions were not there; `lost` (pictures,) is true for these."""
        new_row = np.cumsum(~lost) - 1
        captions = [(text, image) for text, image in zip(self.texts, self.image_of_text) if not lost[image]]
        return CaptionedImages(
            [image for image, is_lost in zip(self.images, lost) if not is_lost],
            [text for text, _ in captions],
            [int(new_row[image]) for _, image in captions],
            self.layout,
            self.files,
        )


def load_captioned_images(
    image_folder: str | Path, text_path: str | Path, *, pictures_there: bool = True
) -> CaptionedImages:
    """Read captions and check that every picture is there (not that it can be decoded).

    Args:
        text_path: a file in one of the layouts of caption_files, or a folder of CLIP_benchmark, whose pictures are
            unpacked into `image_folder`.
        pictures_there: refuse pictures that do not exist; False leaves them to whoever opens them.

    Raises:
        UserError: something is missing, malformed or does not fit; names the file and the way out.
    """
    image_folder, text_path = Path(image_folder), Path(text_path)
    if not image_folder.is_dir():
        raise UserError(f"image folder {image_folder} does not exist: bash scripts/download.sh flickr coco gets it")
    if not text_path.exists():
        raise UserError(f"caption file {text_path} does not exist: bash scripts/download.sh flickr coco gets it")
    layout, captions, files = read_captions(text_path, image_folder)
    missing = [name for name in captions if not as_on_disk(image_folder / name).is_file()]
    if missing and pictures_there:
        raise UserError(
            f"{len(missing)} of the {len(captions)} pictures of {text_path} are missing in {image_folder}, first "
            f"{missing[0]}: extract the pictures again, or give the folder that belongs to this file"
        )
    for name, texts in captions.items():
        for i, text in enumerate(texts):
            if not isinstance(text, str) or is_blank(text):
                raise UserError(f"caption {i + 1} of picture {name} in {text_path} is {text!r}: write or remove it")
    return CaptionedImages(
        images=[Item(name, images=(image_folder / name,)) for name in captions],
        texts=[Item(f"{name}#{i}", text) for name, texts in captions.items() for i, text in enumerate(texts)],
        image_of_text=[image for image, texts in enumerate(captions.values()) for _ in texts],
        layout=layout,
        files=files,
    )


def captioned_tasks(
    data: CaptionedImages,
    name: str,
    captions: str | Path,
    protocol: str | None = None,
    *,
    released_instruction: str = INSTRUCTION_IMAGE_TO_TEXT,
) -> list[RetrievalTask]:
    """Image retrieval (captions search pictures) and text retrieval (pictures search any of their captions).

    Args:
        name: of the data; the paper has numbers of those in PAPER, which stand beside as many pictures alone, and
            weights of P(Yes) for "COCO".
        captions: the file or folder that they were read from.
        protocol: None: no instructions. "released": pictures have theirs as queries and as candidates, captions have
            none, as the paper's numbers were measured. "clean": all queries have one, and no candidate.
        released_instruction: of the pictures in "released".
    """

    def items(found: list[Item], what: str, instruction: str | None = None) -> ItemList:
        found = [replace(item, instruction=instruction) for item in found] if instruction else found
        return ItemList(found, f"{name} {what}", captions)

    pictures = items(data.images, "pictures", released_instruction if protocol == "released" else None)
    texts = items(data.texts, "captions")
    picture_queries, caption_queries = pictures, texts
    if protocol == "clean":
        picture_queries = items(data.images, "picture queries", INSTRUCTION_IMAGE_TO_TEXT)
        caption_queries = items(data.texts, "caption queries", INSTRUCTION_TEXT_TO_IMAGE)
    captions_of: list[list[int]] = [[] for _ in data.images]
    for caption, picture in enumerate(data.image_of_text):
        captions_of[picture].append(caption)
    directions = (
        ("image_retrieval", caption_queries, pictures, [[picture] for picture in data.image_of_text]),
        ("text_retrieval", picture_queries, texts, captions_of),
    )
    files = {f"captions{number or ''}": file for number, file in enumerate(data.files or [Path(captions)])}
    reported = PAPER.get(name, (None, None)) if len(data.images) == PAPER_PICTURES else (None, None)
    weights = RERANK_WEIGHTS.get(name, (1.0, 1.0))
    return [
        RetrievalTask(*direction, weight=weight, reported=paper, files=files)
        for direction, weight, paper in zip(directions, weights, reported)
    ]
