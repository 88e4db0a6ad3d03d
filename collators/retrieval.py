"""Pairs of items to one concatenated batch, so that one forward embeds queries, targets and hard negatives."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch

from lamra.collators.processing import Processor
from lamra.datasets.items import Pair
from lamra.datasets.usable import UsableBatch


@dataclass
class RetrievalCollator:
    """Rows 0..B-1 of a batch are the queries, B..2B-1 their targets, the rest all hard negatives.

    Args:
        mask_duplicates: "item_ids" are equal for all items that look the same, not only for those of the same row.
    """

    processor: Processor
    mask_duplicates: bool = False

    def encode(self, pair: Pair) -> list[dict]:
        """What Processor.encode makes of query, target and hard negatives; raises as it does."""
        return [self.processor.encode(item) for item in (pair.query, pair.target, *pair.negatives)]

    def __call__(self, batch: UsableBatch) -> dict:
        """Embedder's keyword arguments for B pairs with M targets and hard negatives, and:

        "num_queries": B.
        "ids": (B,) the queries' ids.
        "item_ids": (B + M,) int64, equal where two items are the same: such targets are no negatives.
        "hit_ids": (B + M,) int64, equal where the items' texts and pictures' paths are: such targets count as hits.
        "notes": the ids of items and what befell their texts, see collators.texts.
        "faults": as in UsableBatch. A batch without pairs is nothing else.
        "teacher": (B, 1 + K) the teacher's scores of target and K hard negatives, -inf where there is none; only where
            the pairs have a teacher. Lists of numbers: DeepSpeed would have a tensor cast to the model's dtype.
        """
        if not batch.pairs:
            return {"faults": batch.faults}
        items = in_batch_order([(pair.query, pair.target, *pair.negatives) for pair in batch.pairs])
        encoded = in_batch_order(batch.encoded)
        negatives = len(encoded) - 2 * len(batch.rows)
        if self.mask_duplicates:
            item_ids = list(map(input_hash, encoded))
        else:
            item_ids = [2 * row for row in batch.rows] + [2 * row + 1 for row in batch.rows] + [-1] * negatives
        teacher = {}
        if batch.pairs[0].teacher:
            teacher["teacher"] = [
                [-math.inf if score is None else score for score in pair.teacher] for pair in batch.pairs
            ]
        return {
            **self.processor.pad(encoded),
            "num_queries": len(batch.pairs),
            "ids": [pair.query.id for pair in batch.pairs],
            "item_ids": torch.tensor(item_ids),
            "hit_ids": torch.tensor([_int64(repr(item.content).encode()) for item in items]),
            "notes": [(item.id, inputs["notes"]) for item, inputs in zip(items, encoded) if inputs["notes"]],
            "faults": batch.faults,
            **teacher,
        }


def in_batch_order(rows: list) -> list:
    """Lists of query, target, hard negatives to one list: all queries, all targets, all hard negatives."""
    queries, targets, negatives = [row[0] for row in rows], [row[1] for row in rows], [row[2:] for row in rows]
    return queries + targets + [negative for few in negatives for negative in few]


def input_hash(encoded: dict) -> int:
    """64 bits of what the model sees of an item: its tokens and its pixels."""
    pixels = b"" if encoded["pixel_values"] is None else encoded["pixel_values"].numpy().tobytes()
    return _int64(repr(encoded["input_ids"]).encode(), pixels)


def _int64(*parts: bytes) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little", signed=True)
