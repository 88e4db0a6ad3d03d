"""What LamRA-Rank is trained on: examples drawn from mined candidates."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lamra.common.arrays import among
from lamra.datasets.items import Item
from lamra.datasets.mbeir.mined import MinedCandidates
from lamra.datasets.mbeir.pairs import MBEIRPairs

MOST_OTHERS = 4  # LamRA-Rank's lists hold the positive and 1 to 4 negatives


class RerankExample(NamedTuple):
    """A query with what LamRA-Rank learns from it; `others` and, before others[position], the positive are its list."""

    query: Item
    positive: Item
    negative: Item
    others: tuple[Item, ...]
    position: int


class RerankExamples:
    """The rows of queries that mined candidates were found for, each with a negative and a list.

    What is drawn for a row follows from seed, epoch and row alone, as the query's instruction and positive do.

    Args:
        mined: files that mined_candidates reads.

    Attributes:
        rows: the rows of `pairs`, one an example.

    Raises:
        UserError: as MinedCandidates.
    """

    def __init__(self, pairs: MBEIRPairs, mined: Iterable[str | Path]):
        self.pairs, self.mined = pairs, MinedCandidates(pairs, mined)
        first = pairs.queries.rows_of(pairs.queries.keys)  # (N,) row that stands for all of a query
        (self.rows,) = np.nonzero(among(first, self.mined.queries))

    def set_epoch(self, epoch: int) -> None:
        """Draw anew, as this epoch's draws are."""
        self.pairs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> RerankExample:
        row = int(self.rows[i])
        pair, rng = self.pairs[row], random.Random(f"rerank/{self.pairs.seed}/{self.pairs.epoch}/{row}")
        negatives = self.mined.of(row)
        others = rng.sample(negatives, min(rng.randint(1, MOST_OTHERS), len(negatives)))
        position = rng.randint(0, len(others))
        pool = self.pairs.pool
        return RerankExample(
            pair.query, pair.target, pool[rng.choice(negatives)], tuple(pool[other] for other in others), position
        )
