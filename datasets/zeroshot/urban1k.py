"""Urban1K (1,000 pairs): long captions and pictures of streets search each other.

Two folders of Urban1k.zip (hub BeichenZhang/Urban1k): image/1.jpg .. and caption/1.txt .., a pair has one name. The
first line of a text is the caption, as Long-CLIP reads it.

released: upstream put the pictures' instruction in a Python set, so its braces and quotes stand in the prompt; and its
retrieval, not its reranking, read pictures of up to RELEASED_MAX_PIXELS. clean: without both.

A reranker reads the tasks of clean: in released, the pictures that a caption finds have an instruction.
"""

from __future__ import annotations

from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import read_lines
from lamra.datasets.caption import INSTRUCTION_IMAGE_TO_TEXT, CaptionedImages, captioned_tasks
from lamra.datasets.items import Item, is_blank
from lamra.datasets.tasks import RetrievalTask

NAME = "Urban1K"
RELEASED_INSTRUCTION = "{'" + INSTRUCTION_IMAGE_TO_TEXT + "'}"
RELEASED_MAX_PIXELS = 16384 * 28 * 28


def urban1k_tasks(image_data_path: str | Path, text_data_path: str | Path, protocol: str) -> list[RetrievalTask]:
    """Captions search pictures, and pictures captions, with captioned_tasks' protocols.

    Args:
        image_data_path, text_data_path: the folders of the pictures and of the captions. Whether a picture is there is
            left to whoever opens it.
        protocol: one of caption.PROTOCOLS.

    Raises:
        UserError: there are no captions, one is empty or in another encoding than UTF-8, or a picture has no caption.
    """
    image_data_path, text_data_path = Path(image_data_path), Path(text_data_path)
    files = sorted(text_data_path.glob("*.txt"), key=lambda path: (len(path.stem), path.stem))  # 1, 2, .., 1000
    if not files:
        raise UserError(f"{NAME}: {text_data_path} holds no 1.txt, 2.txt, ..: give the folder caption of Urban1k.zip")
    names = {path.stem for path in files}
    if bare := sorted(path.name for path in image_data_path.glob("*.jpg") if path.stem not in names):
        raise UserError(f"{NAME}: picture {bare[0]} of {image_data_path} has no .txt in {text_data_path}: add it")
    data = CaptionedImages(
        [Item(path.stem, images=(image_data_path / f"{path.stem}.jpg",)) for path in files],
        [Item(path.stem, _caption(path)) for path in files],
        list(range(len(files))),
        files=files,
    )
    return captioned_tasks(data, NAME, text_data_path, protocol, released_instruction=RELEASED_INSTRUCTION)


def _caption(path: Path) -> str:
    caption = next(iter(read_lines(path)), "").strip()
    if is_blank(caption):
        raise UserError(f"{NAME}: the first line of {path} is empty: write the caption there")
    return caption
