"""What was found for training queries: wrong candidates, and how a reranker scores candidates.

A million queries have a hundred million lines. Candidates are mapped, 4 bytes a line that all processes of a machine
share; where a file of lines is read for the first time, a line takes about 100 bytes meanwhile.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lamra.common.arrays import among
from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.datasets.columns import SUFFIX, Columns, Piece, columns_file, is_columns, read_columns, rows_of
from lamra.datasets.mbeir.rows import id_key
from lamra.datasets.rankings import mined_candidates, ranking_lines

if TYPE_CHECKING:
    from lamra.datasets.mbeir.pairs import MBEIRPairs


class MinedCandidates:
    """The wrong candidates of queries, mapped from columns.

    They are mined once for a query; each of its repetitions draws from them, and no positive of one is a negative of
    another. Files that are no columns, or several together, are read once: the columns that training draws from are
    then kept beside the first.

    Args:
        files: columns that mine_rerank.py or mine_negatives.py wrote, or files that mined_candidates reads.

    Attributes:
        queries: (Q,) the first row of each query that has a wrong candidate, ascending.
        found: the wrong candidates of each query, each once, in the order of the files.
        candidates: so many lines there were; `right` of them name a positive of their query and are left out.

    Raises:
        UserError: a file names a query or candidate that is not there, is of others, or no query has a negative.
    """

    def __init__(self, pairs: MBEIRPairs, files: Iterable[str | Path]):
        self.pairs, self.files = pairs, list(files)
        self.found = self._mined() or self._kept()
        self.candidates, self.right = self.found.about.get("lines", self.found.lines), self.found.about.get("right", 0)
        if not self.found.lines:
            raise UserError(f"--mined {','.join(map(str, self.files))}: no query has a candidate but its positives")
        self._order = np.argsort(self.found.queries)
        self.queries = self.found.queries[self._order]

    @property
    def keys(self) -> np.ndarray:
        """(L,) of all wrong candidates, as MBEIRPairs.pair_keys."""
        return np.concatenate([self.pairs.pair_keys(query, rows) for query, rows, _ in _rows(self.found)])

    def of(self, row: int) -> list[int]:
        """The pool's rows of a query's wrong candidates; `row` is any of its."""
        first = self.pairs.queries.repetitions(row)[0]
        position = int(np.searchsorted(self.queries, first))
        if position == len(self.queries) or self.queries[position] != first:
            return []
        return self.found[self._order[position]].candidates

    def _mined(self) -> Columns | None:
        """What was mined for these very positives, as it is."""
        if len(self.files) > 1 or not is_columns(self.files[0]):
            return None
        found = read_columns(self.files[0]).require(self.pairs.queries, self.pairs.pool)
        return found if found.about.get("answers") == self.pairs.answers_sha256 else None

    def _kept(self) -> Columns:
        """What an earlier start made of these files as they are now, or this one, which later ones find."""
        pairs, first = self.pairs, Path(self.files[0])
        states = [(file, os.stat(file)) for file in self.files if os.path.exists(file)]  # of others the reader tells
        made_of = {
            **rows_of(pairs.queries, pairs.pool),
            "files": [[str(file), state.st_size, state.st_mtime_ns] for file, state in states],
            "answers": pairs.answers_sha256,
        }
        path = first.with_name(f".{first.name}{SUFFIX}")
        if path.exists():
            kept = read_columns(path)
            if made_of.items() <= kept.about.items():
                return kept
        piece, lines, right = self._wrong()
        about = {**made_of, "lines": lines, "right": right}
        try:
            with columns_file(path, about) as write:
                write(piece)
        except OSError as error:
            note(f"--mined {first}: its columns cannot be kept beside it ({error.strerror}): every start reads it anew")
            return Columns([piece], about=about)
        return read_columns(path)

    def _wrong(self) -> tuple[Piece, int, int]:
        """The wrong candidates in the files, how many lines these have, and how many of them name a positive."""
        pairs = self.pairs
        keys = np.concatenate([pairs.pair_keys(*rows) for file in self.files for rows in mined_rows(pairs, file)])
        wrong = keys[~among(keys, pairs.answer_keys)]
        _, first = np.unique(wrong, return_index=True)
        once = wrong[np.sort(first)]
        queries, candidates = np.divmod(once, len(pairs.pool))
        order = np.argsort(queries, kind="stable")
        queries, starts = np.unique(queries[order], return_index=True)
        piece = Piece(queries, np.append(starts, len(once)), candidates[order].astype(np.int32))
        return piece, len(keys), len(keys) - len(wrong)


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
        query, candidate, scores = map(np.concatenate, zip(*scored_rows(pairs, file)))
        keys = pairs.pair_keys(query, candidate)
        order = np.argsort(keys, kind="stable")
        self._keys, self._scores = keys[order], scores[order]
        positives = pairs.answer_keys[among(pairs.answer_keys // len(pairs.pool), mined.queries)]
        for wrong, what in (
            (self._keys[1:][self._keys[1:] == self._keys[:-1]], "scores {} twice"),
            (positives[~among(positives, self._keys)], "does not score {}, a positive of it"),
            (mined.keys[~among(mined.keys, self._keys)], f"does not score {{}}, mined in {mined.files[0]}"),
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
    """The candidates of columns, or of a file that mined_candidates reads, in its order.

    Args:
        together: candidates that are read at a time; None: all.

    Returns:
        First rows of queries and rows of the pool, (n,) int64 each.

    Raises:
        UserError: as _read and Columns.require.
    """
    if is_columns(file):
        return (
            (query, candidate) for query, candidate, _ in _rows(read_columns(file).require(pairs.queries, pairs.pool))
        )
    lines = ((qid, did, 0.0) for qid, dids in mined_candidates(file) for did in dids)
    return ((query, candidate) for query, candidate, _ in _read(pairs, file, lines, together))


def scored_rows(pairs: MBEIRPairs, file: str | Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The lines of a ranking, in columns or not: as mined_rows, and float32 scores."""
    if is_columns(file):
        return _rows(read_columns(file).require(pairs.queries, pairs.pool))
    return _read(pairs, file, ((qid, did, score) for qid, did, score, _ in ranking_lines(file)))


def _rows(columns: Columns) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Each piece's queries, candidates and float32 scores, (L,) each."""
    for piece in columns.pieces:
        scores = np.zeros(len(piece.candidates)) if piece.scores is None else piece.scores
        yield piece.queries.astype(np.int64)[piece.owners], piece.candidates.astype(np.int64), scores.astype(np.float32)


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
        kept = ~among(keys[0], pairs.left_out)
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
