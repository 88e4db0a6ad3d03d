"""Training pairs of M-BEIR."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamra.common.arrays import among, distinct
from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.datasets.items import Pair
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import INSTRUCTIONS
from lamra.datasets.mbeir.mined import MinedCandidates, TeacherScores
from lamra.datasets.mbeir.rows import (
    CANDIDATE,
    MODALITIES,
    QUERY,
    Rows,
    dataset_and_modality,
    dataset_of,
    id_key,
    key_id,
)

MOST_INCOMPLETE = 0.01  # share of the training rows; beyond it the pool is another one, not a little short


class MBEIRPairs:
    """Training pairs: a query with an instruction, one of its positives, and hard negatives.

    A repeated query is as many pairs. What is drawn for a row follows from seed, epoch and row alone, so that a run
    repeats and goes on exactly. Candidates that a query lists and the pool lacks are never drawn.

    Args:
        hard_negatives: so many for each query, because all ranks gather equal numbers; drawn from its neg_cand_list.
            Where the list is shorter, the rest are random candidates of the pool.
        mined: files of wrong candidates to draw them from instead, see mined.MinedCandidates.
        teacher: a file of a reranker's scores, see mined.TeacherScores; a pair then has those of its candidates.

    Attributes:
        queries: the rows that are trained on: all whose positives are not all missing in the pool.
        left_out: integer keys of queries that have no row in `queries`.
        notes: what is missing, a sentence each.
        groups: name of a dataset and its two modalities -> the rows that belong to it, by the first positive.
        answer_keys: ascending, the pair_keys of each query with each of its positives.

    Raises:
        UserError: a query without positive, more than MOST_INCOMPLETE of the rows have no candidate in the pool of
            those they list, or a modality without instruction; or as MinedCandidates and TeacherScores.
    """

    def __init__(
        self,
        queries: Rows,
        pool: Rows,
        instructions: Instructions,
        *,
        seed: int = 0,
        hard_negatives: int = 0,
        mined: Sequence[str | Path] = (),
        teacher: str | Path | None = None,
    ):
        self.queries, self.pool, self.instructions = queries, pool, instructions
        self.seed, self.hard_negatives = seed, hard_negatives
        self.notes: list[str] = []
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # also where data workers outlive an epoch
        listed, counts, rows = self._candidates(queries, "pos_cand_list")
        if not listed.all():
            raise UserError(f"{queries.line(listed.argmin())} has no positive in pos_cand_list: remove it")
        lost = counts == 0
        keys = distinct(queries.keys[lost])
        self.left_out = keys[~among(keys, np.sort(queries.keys[~lost]))]
        if lost.any():
            self.notes.append(
                f"{queries.path}: {lost.sum()} of {len(queries)} rows are left out, because none of their positives is "
                f"in {pool.path}"
            )
            self.queries, counts = queries.without(lost), counts[~lost]
        if hard_negatives:
            if not mined:
                self._candidates(queries, "neg_cand_list", kept=~lost)
            if len(pool) < hard_negatives + counts.max():
                raise UserError(
                    f"--hard_negatives {hard_negatives}: {pool.path} has {len(pool)} candidates; give fewer"
                )
        self.groups = self._groups(counts, rows)
        first = self.queries.rows_of(self.queries.keys)  # (N,) row that stands for all of a query
        self.answer_keys = distinct(self.pair_keys(np.repeat(first, counts), rows))
        self.mined = MinedCandidates(self, mined) if mined else None
        self.teacher = TeacherScores(self, teacher, self.mined) if teacher and self.mined else None
        if self.mined:
            self._note_mined(first)

    def pair_keys(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """(n,) a number for each query with a candidate: the query's first row, times the pool's size, plus the row."""
        return queries * len(self.pool) + candidates

    @property
    def answers_sha256(self) -> str:
        """Tells whether what was mined leaves out these positives."""
        return hashlib.sha256(self.answer_keys.tobytes()).hexdigest()

    def answers_of(self, first_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All positives of some queries, which their first rows name.

        Returns:
            (A,) positions in `first_rows`, ascending, and (A,) rows of the pool.
        """
        starts, stops = (np.searchsorted(self.answer_keys, (first_rows + more) * len(self.pool)) for more in (0, 1))
        counts = stops - starts
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        keys = self.answer_keys[np.repeat(starts, counts) + within]
        return np.repeat(np.arange(len(first_rows)), counts), keys % len(self.pool)

    def _note_mined(self, first: np.ndarray) -> None:
        """Say which mined candidates are not drawn, and where there are too few; `first` (N,) is of each row."""
        assert self.mined is not None
        files = ", ".join(map(str, self.mined.files))
        if self.mined.right:
            self.notes.append(
                f"{files}: {self.mined.right} of {self.mined.candidates} candidates are positives of their query and "
                "are left out"
            )
        queries = len(distinct(first))
        few = queries - (self.mined.found.counts >= self.hard_negatives).sum()
        if few:
            self.notes.append(
                f"{files}: {few} of {queries} queries have fewer than --hard_negatives {self.hard_negatives} "
                f"candidates; the rest are random ones of {self.pool.path}"
            )

    def _candidates(
        self, queries: Rows, field: str, kept: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How many candidates each query lists and has in the pool (N,) each, and the pool's rows of the latter.

        Args:
            queries: all rows of the file.
            kept: of these the rows of `self.queries`.
        """
        listed, keys = queries.listed(field)
        if kept is not None and not kept.all():
            keys, listed = keys[np.repeat(kept, listed)], listed[kept]
        rows = self.pool.rows_of(keys)
        query = np.repeat(np.arange(len(listed)), listed)  # the query of each candidate
        found = np.bincount(query[rows >= 0], minlength=len(listed))
        (empty,) = np.nonzero((found == 0) & (listed > 0))
        if len(empty) > MOST_INCOMPLETE * len(listed):
            raise UserError(
                f"{self.queries.path}: {len(empty)} of {len(listed)} rows have no candidate of their {field} in "
                f"{self.pool.path}, first line {self.queries.line(empty[0]).rpartition(' ')[2]}, which has "
                f"{key_id(keys[int(listed[: empty[0]].sum())])}: give the pool that belongs to these queries"
            )
        short = ((found > 0) & (found < listed)).sum()
        if short:
            self.notes.append(
                f"{self.queries.path}: {field} of {short} of {len(listed)} rows has candidates that are not in "
                f"{self.pool.path}; the others are used"
            )
        return listed, found, rows[rows >= 0]

    def _groups(self, counts: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        query = np.repeat(np.arange(len(counts)), counts)  # the query of each positive
        kinds = self.queries.kinds[query] * len(MODALITIES) + self.pool.modalities[rows]  # (positives,)
        of_rows = kinds[np.cumsum(counts) - counts]  # (N,) of the first positive of each
        groups = {}
        for kind in distinct(kinds).tolist():
            kind_of_query, candidate = divmod(kind, len(MODALITIES))
            named = *dataset_and_modality(kind_of_query), MODALITIES[candidate]
            self.instructions.prompts(*named)  # raises where a positive that may be drawn has none
            (members,) = np.nonzero(of_rows == kind)
            if len(members):
                groups[self.instructions.name(*named)] = members
        return groups

    def set_epoch(self, epoch: int) -> None:
        """Draw anew, as this epoch's draws are."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def positives(self, row: int) -> list[int]:
        """The pool's rows of all positives of a row."""
        return self._pool_rows(self.queries.record(row)["pos_cand_list"])

    def answers(self, row: int) -> list[int]:
        """The pool's rows of all positives of a query: of this row and of its repetitions."""
        return list(dict.fromkeys(right for same in self.queries.repetitions(row) for right in self.positives(same)))

    def _pool_rows(self, dids: Sequence[str]) -> list[int]:
        rows = self.pool.rows_of([id_key(did) for did in dids])
        return rows[rows >= 0].tolist()

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, row: int) -> Pair:
        rng = random.Random(f"{self.seed}/{self.epoch}/{row}")
        record = self.queries.record(row)
        positives = self._pool_rows(record["pos_cand_list"])
        positive = rng.choice(positives)
        dataset = dataset_of(int(self.queries.keys[row]))
        prompts = self.instructions.prompts(dataset, self.queries.modality(row), self.pool.modality(positive))
        query = self.queries.item_of(record, rng.choice(prompts))
        negatives = self._draw_negatives(rng, row, record, positives) if self.hard_negatives else []
        scores = self.teacher.of(row, [positive, *negatives]) if self.teacher else ()
        return Pair(query, self.pool[positive], tuple(self.pool[negative] for negative in negatives), scores)

    def _draw_negatives(self, rng: random.Random, row: int, record: dict, positives: list[int]) -> list[int]:
        listed = self.mined.of(row) if self.mined else self._pool_rows(record.get("neg_cand_list") or [])
        listed = [row for row in dict.fromkeys(listed) if row not in positives]
        drawn = rng.sample(listed, min(len(listed), self.hard_negatives))
        while len(drawn) < self.hard_negatives:
            candidate = rng.randrange(len(self.pool))
            if candidate not in positives and candidate not in drawn:
                drawn.append(candidate)
        return drawn


def open_pairs(
    root: str | Path,
    queries: str,
    pool: str,
    instructions: str = INSTRUCTIONS,
    *,
    seed: int = 0,
    **negatives: Any,
) -> MBEIRPairs:
    """The pairs of M-BEIR's files below `root`; a note says whatever is missing in them.

    Args:
        negatives: hard_negatives, mined and teacher, as MBEIRPairs takes them.
    """
    rows = Rows(Path(root, queries), root, QUERY), Rows(Path(root, pool), root, CANDIDATE)
    pairs = MBEIRPairs(*rows, Instructions(Path(root, instructions)), seed=seed, **negatives)
    for sentence in pairs.notes:
        note(sentence)
    return pairs
