"""What was found for training queries: wrong candidates, and how a reranker scores candidates. Arrays, not lists.

A million queries have ten million lines: a line is 8 bytes, or with a score 12, and about 100 while a file is read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lamra.common.errors import UserError
from lamra.datasets.mbeir.rows import id_key
from lamra.datasets.rankings import mined_candidates, ranking_lines

if TYPE_CHECKING:
    from lamra.datasets.mbeir.pairs import MBEIRPairs


class MinedCandidates:
    """The wrong candidates of queries.

    They are mined once for a query; each of its repetitions draws from them, and no positive of one is a negative of
    another.

    Args:
        files: that mined_candidates reads.

    Attributes:
        queries: (Q,) the first row of each query that has a wrong candidate, ascending.
        candidates: so many lines there were; `right` of them name a positive of their query and are left out.
        keys: of all wrong candidates, as MBEIRPairs.pair_keys; those of a query in the order of the files.

    Raises:
        UserError: a file names a query or candidate that is not there, or no query has a negative.
    """

    def __init__(self, pairs: MBEIRPairs, files: Iterable[str | Path]):
        self.pairs, self.files = pairs, list(files)
        keys = np.concatenate([pairs.pair_keys(*rows) for file in self.files for rows in mined_rows(pairs, file)])
        self.candidates = len(keys)
        keys = keys[~np.isin(keys, pairs.answer_keys)]
        self.right = self.candidates - len(keys)
        if not len(keys):
            raise UserError(f"--mined {','.join(map(str, self.files))}: no query has a candidate but its positives")
        self.keys = keys[np.argsort(keys // len(pairs.pool), kind="stable")]
        self.queries, starts = np.unique(self.keys // len(pairs.pool), return_index=True)
        self._starts = np.append(starts, len(self.keys))

    def of(self, row: int) -> list[int]:
        """The pool's rows of a query's wrong candidates, each once, in the order of the files; `row` is any of its."""
        first = self.pairs.queries.repetitions(row)[0]
        position = int(np.searchsorted(self.queries, first))
        if position == len(self.queries) or self.queries[position] != first:
            return []
        mined = self.keys[self._starts[position] : self._starts[position + 1]]
        return list(dict.fromkeys((mined % len(self.pairs.pool)).tolist()))


class TeacherScores:
    """How surely a reranker takes candidates of queries for right: log p(Yes) - log p(No).

    Args:
        file: a ranking, see teacher_scores.py.

    Raises:
        UserError: the file names a query or candidate that is not there or one twice, or lacks a mined candidate, or a
            positive of a query that has one.
    """

    def __init__(self, pairs: MBEIRPairs, file: str | Path, mined: MinedCandidates):
        self.pairs = pairs
        lines = ((qid, did, score) for qid, did, score, _ in ranking_lines(file))
        ((query, candidate, scores),) = _read(pairs, file, lines)
        keys = pairs.pair_keys(query, candidate)
        order = np.argsort(keys, kind="stable")
        self._keys, self._scores = keys[order], scores[order]
        positives = pairs.answer_keys[np.isin(pairs.answer_keys // len(pairs.pool), mined.queries)]
        for wrong, what in (
            (self._keys[1:][self._keys[1:] == self._keys[:-1]], "scores {} twice"),
            (positives[~np.isin(positives, keys)], "does not score {}, a positive of it"),
            (mined.keys[~np.isin(mined.keys, keys)], f"does not score {{}}, mined in {mined.files[0]}"),
        ):
            if len(wrong):
                of, row = divmod(int(wrong[0]), len(pairs.pool))
                words = what.format(f"the candidate {pairs.pool.id(row)}")
                raise UserError(
                    f"--teacher {file} {words}, for the query {pairs.queries.id(of)} ({len(wrong)} such): give what "
                    "teacher_scores.sh wrote with the same --mined, --queries and --pool"
                )

    def of(self, row: int, candidates: Sequence[int]) -> tuple[float | None, ...]:
        """The scores of rows of the pool for a query, None where there is none; `row` is any of the query's."""
        keys = self.pairs.pair_keys(self.pairs.queries.repetitions(row)[0], np.array(candidates, dtype=np.int64))
        positions = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        known = self._keys[positions] == keys
        scores = self._scores[positions].tolist()
        return tuple(score if there else None for score, there in zip(scores, known.tolist()))


def mined_rows(
    pairs: MBEIRPairs, file: str | Path, together: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The candidates of a file that mined_candidates reads, in its order: first rows of queries, rows of the pool.

    Args:
        together: candidates that are read at a time; None: all.

    Raises:
        UserError: as _read.
    """
    lines = ((qid, did, 0.0) for qid, dids in mined_candidates(file) for did in dids)
    return ((query, candidate) for query, candidate, _ in _read(pairs, file, lines, together))


def _read(
    pairs: MBEIRPairs, file: str | Path, lines: Iterator[tuple[str, str, float]], together: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of (qid, did, score), (n,) each, and float32 scores, in order, without queries that pairs leave out.

    Args:
        together: lines that are read at a time; None: all, also where there are none.

    Raises:
        UserError: an id is none of M-BEIR's, or not in the files of `pairs`; names it.
    """
    while True:
        columns, scores = (array("q"), array("q")), array("f")
        try:
            for qid, did, score in islice(lines, together):
                columns[0].append(id_key(qid))
                columns[1].append(id_key(did))
                scores.append(score)
        except UserError as error:
            raise error if str(file) in str(error) else UserError(f"{file}: {error}") from None
        keys = [np.frombuffer(column, dtype=np.int64) for column in columns]
        kept = ~np.isin(keys[0], pairs.left_out)
        found = []
        for column, items in zip(keys, (pairs.queries, pairs.pool)):
            column = column[kept]
            found.append(items.rows_of(column))
            if (found[-1] < 0).any():
                raise UserError(
                    f"{file} names {items.name_of(column[(found[-1] < 0).argmax()])}, which is not in {items.path}: "
                    "give the --queries and --pool that it was made from, or make it again with these"
                )
        yield found[0], found[1], np.frombuffer(scores, dtype=np.float32)[kept]
        if together is None or len(scores) < together:
            return
