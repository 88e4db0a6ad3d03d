"""Pictures that each choose between a true and a false caption: what SugarCrepe and CC-Neg share.

A picture asks without an instruction, and captions have none; a reranker is shown the picture with one. The share of
pictures whose true caption has the higher score is recall@1 among the two; a tie is a miss. Chance is 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lamra.datasets.caption import INSTRUCTION_IMAGE_TO_TEXT
from lamra.datasets.items import Item
from lamra.datasets.tasks import ItemList, Reported, RetrievalTask


class CaptionPair(NamedTuple):
    """A picture with a caption that is true of it and one that is not."""

    id: str
    picture: Path
    caption: str
    negative: str


def pair_task(
    name: str,
    rows: Sequence[CaptionPair],
    path: Path,
    *,
    weight: float = 1.0,
    reported: Reported | None = None,
) -> RetrievalTask:
    """Each picture ranks its own two captions. The false one of row i is row 2 i + 1 of the gallery.

    Args:
        path: the file that the rows were read from.
        weight, reported: as in RetrievalTask.
    """
    pictures = [Item(row.id, images=(row.picture,)) for row in rows]
    captions = [
        Item(f"{row.id}#{kind}", text)
        for row in rows
        for kind, text in (("caption", row.caption), ("negative", row.negative))
    ]
    return RetrievalTask(
        name,
        ItemList(pictures, f"{name} pictures", path),
        ItemList(captions, f"{name} captions", path),
        answers=[[2 * row] for row in range(len(rows))],
        candidates=[[2 * row, 2 * row + 1] for row in range(len(rows))],
        ks=(1,),
        tie_is_miss=True,
        weight=weight,
        reported=reported,
        files={"annotations": path},
        rerank_queries=ItemList(
            [replace(item, instruction=INSTRUCTION_IMAGE_TO_TEXT) for item in pictures], f"{name} questions", path
        ),
    )
