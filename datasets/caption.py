"""Captioned pictures for Flickr30K and COCO retrieval, in LamRA_Eval's layout or Karpathy's.

LamRA_Eval: a folder with 0.png .. n-1.png and a json list of captions, five in a row for each picture.
Karpathy:   one json, images[].{filename, filepath?, split, sentences[].raw}; the pictures with split "test" are used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lamra.common.errors import UserError
from lamra.common.files import as_on_disk, path_inside, read_json
from lamra.datasets.items import Item, is_blank
from lamra.datasets.tasks import ItemList, Reported, RetrievalTask

CAPTIONS_PER_IMAGE = 5  # LamRA_Eval's layout says it nowhere else

PROTOCOLS = ("released", "clean")
INSTRUCTION_TEXT_TO_IMAGE = "Find me an everyday image that matches the given caption."
INSTRUCTION_IMAGE_TO_TEXT = "Find an image caption describing the following everyday image."
# R@1 of LamRA-Ret and with LamRA-Rank on Flickr30K, in percent (arXiv 2412.01720).
PAPER = {"Flickr30K": (Reported(82.8, 88.1), Reported(92.7, 97.6))}
RERANK_WEIGHTS = {"COCO": (0.5, 0.1)}  # LamRA's; 1 for all others


@dataclass(frozen=True)
class CaptionedImages:
    """Pictures and captions to retrieve from one another: caption i describes images[image_of_text[i]]."""

    images: list[Item]
    texts: list[Item]
    image_of_text: list[int]

    def without(self, lost: np.ndarray) -> CaptionedImages:
        """The same as if some pictures and their captions were not there; `lost` (pictures,) is true for these."""
        new_row = np.cumsum(~lost) - 1
        captions = [(text, image) for text, image in zip(self.texts, self.image_of_text) if not lost[image]]
        return CaptionedImages(
            [image for image, is_lost in zip(self.images, lost) if not is_lost],
            [text for text, _ in captions],
            [int(new_row[image]) for _, image in captions],
        )


def load_captioned_images(
    image_folder: str | Path, text_path: str | Path, *, pictures_there: bool = True
) -> CaptionedImages:
    """Read captions and check that every picture is there (not that it can be decoded).

    Which layout it is follows from the json: a list of strings, or an object with "images".

    Args:
        pictures_there: refuse pictures that do not exist; False leaves them to whoever opens them.

    Raises:
        UserError: something is missing, malformed or does not fit; names the file and the way out.
    """
    image_folder, text_path = Path(image_folder), Path(text_path)
    if not image_folder.is_dir():
        raise UserError(f"image folder {image_folder} does not exist: bash scripts/download.sh flickr coco gets it")
    if not text_path.is_file():
        raise UserError(f"caption file {text_path} does not exist: bash scripts/download.sh flickr coco gets it")
    content = read_json(text_path)
    if isinstance(content, list):
        captions = _lamra_captions(content, image_folder, text_path)
    elif isinstance(content, dict) and isinstance(content.get("images"), list):
        captions = _karpathy_captions(content["images"], image_folder, text_path)
    else:
        raise UserError(f'{text_path} is neither a list of captions nor an object with "images": give one of these')

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
    )


def captioned_tasks(
    data: CaptionedImages, name: str, captions: str | Path, protocol: str | None = None
) -> list[RetrievalTask]:
    """Image retrieval (captions search pictures) and text retrieval (pictures search any of their captions).

    Args:
        name: of the data; the paper has numbers of "Flickr30K", and weights of P(Yes) for "COCO".
        captions: the file that they were read from.
        protocol: None: no instructions. "released": pictures have theirs as queries and as candidates, captions have
            none, as the paper's numbers were measured. "clean": all queries have one, and no candidate.
    """

    def items(found: list[Item], what: str, instruction: str | None = None) -> ItemList:
        found = [replace(item, instruction=instruction) for item in found] if instruction else found
        return ItemList(found, f"{name} {what}", captions)

    pictures = items(data.images, "pictures", INSTRUCTION_IMAGE_TO_TEXT if protocol == "released" else None)
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
    reported, weights = PAPER.get(name, (None, None)), RERANK_WEIGHTS.get(name, (1.0, 1.0))
    return [
        RetrievalTask(*direction, weight=weight, reported=paper, files={"captions": Path(captions)})
        for direction, weight, paper in zip(directions, weights, reported)
    ]


def _lamra_captions(captions: list, image_folder: Path, text_path: Path) -> dict[str, list]:
    """Captions of each picture, by its path below the image folder."""
    numbers = [int(path.stem) for path in image_folder.glob("*.png") if path.stem.isdecimal()]
    images = max(numbers) + 1 if numbers else len(captions) // CAPTIONS_PER_IMAGE
    if not captions or len(captions) != images * CAPTIONS_PER_IMAGE:
        raise UserError(
            f"{text_path} has {len(captions)} captions and {image_folder} pictures up to {images - 1}.png: "
            f"{CAPTIONS_PER_IMAGE} captions for each of 0.png, 1.png, ... are expected; use files that belong together"
        )
    return {f"{i}.png": captions[i * CAPTIONS_PER_IMAGE : (i + 1) * CAPTIONS_PER_IMAGE] for i in range(images)}


def _karpathy_captions(entries: list, image_folder: Path, text_path: Path) -> dict[str, list]:
    """Captions of each test picture, by its path below the image folder."""
    captions: dict[str, list] = {}
    try:
        for entry in entries:
            if entry["split"] != "test":
                continue
            name = _picture(image_folder, text_path, entry["filename"], entry.get("filepath") or "")
            if not entry["sentences"]:
                raise UserError(f"picture {name} in {text_path} has no caption: remove it or write one")
            if name in captions:
                raise UserError(f"picture {name} occurs twice in {text_path}: join its captions in one entry")
            captions[name] = [sentence["raw"] for sentence in entry["sentences"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{text_path} is not Karpathy's layout ({error!r}): images[] need filename, split and sentences[].raw"
        ) from None
    if not captions:
        raise UserError(f'{text_path} has no picture with split "test": set it on the pictures to evaluate on')
    return captions


def _picture(image_folder: Path, text_path: Path, filename: str, filepath: str) -> str:
    """The picture's path below image_folder: COCO's pictures lie there, or in val2014 and train2014 below it."""
    nested = Path(filepath, filename)
    try:
        path_inside(image_folder, nested)
    except UserError as error:
        raise UserError(f"{text_path}: {error}") from None
    flat = (image_folder / filename).is_file() or not (image_folder / nested).is_file()
    return filename if flat else str(nested)
