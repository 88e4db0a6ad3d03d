"""Mining by hand: a query's wrong candidates one after the other, by their items and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lamra.common.files import sha256
from lamra.datasets.items import Item
from lamra.datasets.mbeir.pairs import MBEIRPairs


def usable(pairs: MBEIRPairs, answers: list[int], candidates: list[int], passed: Counter[str]) -> Iterator[int]:
    """The candidates of a query that are wrong, in order: no answer, and none that looks or reads like an answer.

    Args:
        passed: counts those before the last that was taken, as "positive" and "alike".
    """
    right = [pairs.pool[row] for row in answers]
    for row in candidates:
        if row in answers:
            passed["positive"] += 1
            continue
        item = pairs.pool[row]
        if any(same(item, answer) for answer in right):
            passed["alike"] += 1
            continue
        yield row


def same(a: Item, b: Item) -> bool:
    """Whether two candidates have the same text or the same picture, or both nothing at all."""
    text, other_text, images, others = a.text, b.text, a.images, b.images
    if (text and text == other_text) or not (text or images or other_text or others):
        return True
    return any(_same_file(Path(str(image)), Path(str(other))) for image in images for other in others)


def _same_file(a: Path, b: Path) -> bool:
    return a == b or (a.stat().st_size == b.stat().st_size and sha256(a) == sha256(b))
