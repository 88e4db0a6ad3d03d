"""Pairs of items to one concatenated batch, so that one forward embeds queries, targets and hard negatives."""

from __future__ import annotations

from dataclasses import dataclass

from lamra.collators.processing import Processor
from lamra.datasets.items import Pair


@dataclass
class RetrievalCollator:
    """Rows 0..B-1 of the batch are the queries, B..2B-1 their targets, the rest all hard negatives."""

    processor: Processor

    def __call__(self, pairs: list[Pair]) -> dict:
        """Embedder's keyword arguments, "num_queries", the number of pairs B, and "ids", the queries' ids."""
        items = [pair.query for pair in pairs] + [pair.target for pair in pairs]
        items += [negative for pair in pairs for negative in pair.negatives]
        return {**self.processor(items), "num_queries": len(pairs), "ids": [pair.query.id for pair in pairs]}
