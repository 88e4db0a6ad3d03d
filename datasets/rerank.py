"""What LamRA-Rank is trained on: examples drawn from mined candidates."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lamra.common.errors import UserError
from lamra.datasets.items import Item
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.rows import id_key
from lamra.datasets.rankings import mined_candidates

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

    Candidates are mined once for a query; each of its repetitions draws from them, and no positive of one is a negative
    of another. What is drawn for a row follows from seed, epoch and row alone, as the query's instruction and positive
    do.

    Args:
        mined: files that mined_candidates reads.

    Attributes:
        rows: the rows of `pairs`, one an example.

    Raises:
        UserError: a file names a query or candidate that is not there, or no query has a negative.
    """

    def __init__(self, pairs: MBEIRPairs, mined: Iterable[str | Path]):
        self.pairs = pairs
        query, candidate = self._read(mined)  # (M,) each
        wrong = np.ones(len(query), dtype=bool)
        order = np.argsort(query, kind="stable")
        query, candidate = query[order], candidate[order]
        queries, starts = np.unique(query, return_index=True)
        for row, group in zip(queries, np.split(np.arange(len(query)), starts[1:])):
            wrong[group] = ~np.isin(candidate[group], pairs.answers(row))
        queries, starts = np.unique(query[wrong], return_index=True)  # queries with a negative, their first one
        self._candidates, self._starts = candidate[wrong], np.append(starts, wrong.sum())
        if not len(queries):
            raise UserError(f"--mined {','.join(map(str, mined))}: no query has a candidate but its positives")
        first = pairs.queries.rows_of(pairs.queries.keys)  # (N,) row that stands for all of a query
        (self.rows,) = np.nonzero(np.isin(first, queries))
        self._query = np.searchsorted(queries, first[self.rows])  # of each row, its index in `queries`

    def _read(self, mined: Iterable[str | Path]) -> tuple[np.ndarray, np.ndarray]:
        """First rows of queries and rows of their candidates, in the order of the files."""
        found = [piece for path in mined for piece in mined_rows(self.pairs, path)]
        query, candidate = (np.concatenate(column) for column in zip(*found))
        return query, candidate

    def set_epoch(self, epoch: int) -> None:
        """Draw anew, as this epoch's draws are."""
        self.pairs.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> RerankExample:
        row = int(self.rows[i])
        pair, rng = self.pairs[row], random.Random(f"rerank/{self.pairs.seed}/{self.pairs.epoch}/{row}")
        mined = slice(*self._starts[self._query[i] : self._query[i] + 2])
        negatives = list(dict.fromkeys(self._candidates[mined].tolist()))
        others = rng.sample(negatives, min(rng.randint(1, MOST_OTHERS), len(negatives)))
        position = rng.randint(0, len(others))
        pool = self.pairs.pool
        return RerankExample(
            pair.query, pair.target, pool[rng.choice(negatives)], tuple(pool[other] for other in others), position
        )


def mined_rows(
    pairs: MBEIRPairs, path: str | Path, together: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The candidates of a file that mined_candidates reads, in its order: first rows of queries, rows of the pool.

    Args:
        together: candidates that are read at a time, or a few more; None: all.

    Raises:
        UserError: the file names a query or candidate that is not there.
    """
    columns = array("q"), array("q")
    for qid, dids in mined_candidates(path):
        try:
            columns[0].extend([id_key(qid)] * len(dids))
            columns[1].extend(map(id_key, dids))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if together and len(columns[0]) >= together:
            yield _rows_of(pairs, path, columns)
            columns = array("q"), array("q")
    yield _rows_of(pairs, path, columns)


def _rows_of(pairs: MBEIRPairs, path: str | Path, columns: tuple[array, array]) -> tuple[np.ndarray, np.ndarray]:
    keys = np.array(columns, dtype=np.int64)  # (2, candidates)
    keys = keys[:, ~np.isin(keys[0], pairs.left_out)]
    found = []
    for column, items in zip(keys, (pairs.queries, pairs.pool)):
        rows = items.rows_of(column)
        if (rows < 0).any():
            key = column[(rows < 0).argmax()]
            raise UserError(
                f"{path} names {items.name_of(key)}, which is not in {items.path}: give the --queries and "
                "--pool that it was mined from, or mine again with these"
            )
        found.append(rows)
    return found[0], found[1]
