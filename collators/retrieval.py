"""Pairs of items to one concatenated batch, so that one forward embeds queries, targets and hard negatives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lamra.collators.processing import Processor
from lamra.datasets.items import Item, Pair


@dataclass
class RetrievalCollator:
    """Rows 0..B-1 of the batch are the queries, B..2B-1 their targets, the rest all hard negatives."""

    processor: Processor

    def __call__(self, pairs: list[Pair]) -> dict:
        """Embedder's keyword arguments, "num_queries", the number of pairs B, and "ids", the queries' ids."""
        return self.batch(pairs, [self.encode(pair) for pair in pairs])

    def encode(self, pair: Pair) -> list[dict]:
        """What Processor.encode makes of query, target and hard negatives; raises as it does."""
        return [self.processor.encode(item) for item in (pair.query, pair.target, *pair.negatives)]

    def batch(self, pairs: list[Pair], encoded: list[list[dict]]) -> dict:
        inputs = self.processor.pad(in_batch_order(encoded))
        return {**inputs, "num_queries": len(pairs), "ids": [pair.query.id for pair in pairs]}


@dataclass
class TrainingCollator:
    """Numbers of rows of `pairs` to a batch without faulty pairs.

    A pair with a picture that cannot be read (or another fault that Processor.encode tells) is replaced by the next
    row of its source that can be used and is not in this process's batch. That depends on the data and the batch alone,
    not on workers or on what was met before, so a resumed run replaces alike. Another process may hold the same row in
    the same step: "item_ids" let the loss tell, and neither copy is the other's negative.

    Args:
        pairs: where they have `groups`, these are the sources; each must have more rows than `most_faults`.
        most_faults: after more faulty rows in one batch it gives up, and the batch holds "faults" only.
        mask_duplicates: "item_ids" are equal for all items that look the same, not only for those of the same row.
    """

    processor: Processor
    pairs: Sequence[Pair]
    most_faults: int
    mask_duplicates: bool = False

    def __call__(self, rows: list[int]) -> dict:
        """RetrievalCollator's batch, and:

        "item_ids": (B + M,) int64 of queries, targets and hard negatives, equal where the items are.
        "hit_ids": likewise, equal where the items' texts and pictures' paths are: what counts as a hit.
        "faults": (row, reason) of each pair that was left out, each row once.
        """
        used = set(rows)
        taken: list[int] = []
        pairs: list = []
        encoded: list[list[dict]] = []
        faults: dict[int, str] = {}
        for row in rows:
            for candidate in self._candidates(row, used):
                if candidate in faults:  # it stood in the batch before
                    continue
                try:
                    pair = self.pairs[candidate]
                    encoded.append(self.encode(pair))
                    pairs.append(pair)
                    taken.append(candidate)
                    break
                except ValueError as error:
                    faults[candidate] = str(error)
                if len(faults) > self.most_faults:
                    return {"faults": list(faults.items())}
        return {**self.batch(taken, pairs, encoded), "faults": list(faults.items())}

    def encode(self, pair: Pair) -> list[dict]:
        return RetrievalCollator(self.processor).encode(pair)

    def batch(self, rows: list[int], pairs: list[Pair], encoded: list[list[dict]]) -> dict:
        inputs = RetrievalCollator(self.processor).batch(pairs, encoded)
        items = in_batch_order([(pair.query, pair.target, *pair.negatives) for pair in pairs])
        hit_ids = torch.tensor([_int64(repr(what_is_shown(item)).encode()) for item in items])
        return {**inputs, "item_ids": self._item_ids(rows, encoded), "hit_ids": hit_ids}

    def _candidates(self, row: int, used: set[int]) -> Iterator[int]:
        """`row` and the rows after it in its source, first those that are not in this batch."""
        yield row
        groups = getattr(self.pairs, "groups", {}).values()
        source = next((group for group in groups if row in group), range(len(self.pairs)))
        place = int(np.searchsorted(source, row))
        enough = min(len(source), len(used) + self.most_faults + 1)
        later = [int(source[(place + step) % len(source)]) for step in range(1, enough)]
        for candidate in sorted(later, key=used.__contains__):
            used.add(candidate)
            yield candidate

    def _item_ids(self, rows: list[int], encoded: list[list[dict]]) -> Tensor:
        if self.mask_duplicates:
            return torch.tensor([content_hash(one) for one in in_batch_order(encoded)])
        negatives = sum(len(one) - 2 for one in encoded)
        return torch.tensor([2 * row for row in rows] + [2 * row + 1 for row in rows] + [-1] * negatives)


def in_batch_order(encoded: list[list]) -> list:
    """Lists of query, target, hard negatives to one list: all queries, all targets, all hard negatives."""
    queries, targets, negatives = [one[0] for one in encoded], [one[1] for one in encoded], [one[2:] for one in encoded]
    return queries + targets + [negative for few in negatives for negative in few]


def what_is_shown(item: Item) -> tuple:
    """Equal for items that look the same, whatever their ids."""
    return item.instruction, item.text, tuple(map(str, item.images))


def content_hash(encoded: dict) -> int:
    """64 bits of what the model sees of an item: its tokens and its pixels."""
    pixels = b"" if encoded["pixel_values"] is None else encoded["pixel_values"].numpy().tobytes()
    return _int64(repr(encoded["input_ids"]).encode(), pixels)


def _int64(*parts: bytes) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little", signed=True)
