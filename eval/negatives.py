"""Hard negatives from what was mined: which of a query's wrong candidates training may draw.

The search is kept in pieces, before any rule: other rules need no other search, and memory holds one piece.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState

from lamra.common.files import whole_file
from lamra.common.processes import is_first_process, on_first_process
from lamra.datasets.rankings import RankedQuery
from lamra.eval.cache.manifest import check_manifest
from lamra.eval.cache.shards import RowsOf
from lamra.eval.mining import ALIKE, POSITIVE, QUERIES_TOGETHER, Embedded, TrainingQueries, mine_blocks
from lamra.eval.search import Embeddings

NO_ROW = -1


class Piece(NamedTuple):
    """What was mined for q queries, in a file. Of each the first candidates that are wrong, best first.

    Attributes:
        queries: (q,) their numbers.
        candidates: (q, top) rows of the pool, NO_ROW where there are fewer.
        scores: (q, top) float32 similarities.
        positive: (q,) float32 similarity of the best of the query's positives.
        passed: (2,) how many candidates were passed over as POSITIVE and as ALIKE.
    """

    queries: np.ndarray
    candidates: np.ndarray
    scores: np.ndarray
    positive: np.ndarray
    passed: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Piece:
        with np.load(path) as arrays:
            return cls(**arrays)

    def write(self, path: Path) -> None:
        with whole_file(path, "wb") as file:
            np.savez(file, **self._asdict())

    def ranking(self, kept: np.ndarray) -> list[RankedQuery]:
        """The queries with a candidate in kept (q, top), and these candidates."""
        return [
            RankedQuery(query, candidates[chosen].tolist(), scores[chosen].tolist())
            for query, candidates, scores, chosen in zip(self.queries.tolist(), self.candidates, self.scores, kept)
            if chosen.any()
        ]


def mined_pieces(
    of: Embedded, folder: Path, manifest: Mapping[str, Any], *, top: int, own_kind: bool, **search: Any
) -> list[Path]:
    """Search, a piece for each block of queries; a restarted run searches for the blocks that have none.

    All processes must call this, and see the folder.

    Args:
        manifest: of what and by what, beside the depth.
        search: as mine_blocks takes it.

    Raises:
        UserError: the folder holds pieces with another manifest.
    """
    decided_by = {**manifest, "top": top, "own_kind": own_kind, "search_depth": search["search_depth"]}
    decided_by["queries_together"] = QUERIES_TOGETHER
    on_first_process(lambda: check_manifest(folder, decided_by, "mined candidates"))
    done = on_first_process(lambda: [int(path.stem) for path in folder.glob("*.npz")])
    parts = of.queries, of.embeddings, of.gallery
    for block in mine_blocks(*parts, top=top, own_kind=own_kind, done=done, **search):
        if is_first_process():
            queries = np.array([ranked.query for ranked in block.found])
            candidates = np.full((len(queries), top), NO_ROW, dtype=np.int64)
            scores = np.full((len(queries), top), -np.inf, dtype=np.float32)
            for row, ranked in enumerate(block.found):
                candidates[row, : len(ranked.candidates)] = ranked.candidates
                scores[row, : len(ranked.scores)] = ranked.scores
            positive = best_positive(of.queries, queries, of.embeddings, of.gallery)
            passed = np.array([block.passed[POSITIVE], block.passed[ALIKE]])
            Piece(queries, candidates, scores, positive, passed).write(folder / f"{block.number:05d}.npz")
    PartialState().wait_for_everyone()
    return on_first_process(lambda: sorted(folder.glob("*.npz")))


def best_positive(
    queries: TrainingQueries, numbers: np.ndarray, embeddings: Embeddings, gallery: Embeddings
) -> np.ndarray:
    """(q,) float32 similarity of some queries, ascending, to the best of the positives of each."""
    owners, answers = queries.pairs.answers_of(queries.rows[numbers])
    rows = np.unique(answers)
    of_query = RowsOf(embeddings, numbers)[:].numpy()  # (q, D)
    of_answer = RowsOf(gallery, rows, read_together=64)[:].numpy()  # they lie far apart
    scores = np.empty(len(owners), dtype=np.float32)
    for start in range(0, len(owners), 1024):
        some = slice(start, start + 1024)
        scores[some] = (of_query[owners[some]] * of_answer[np.searchsorted(rows, answers[some])]).sum(axis=1)
    return np.maximum.reduceat(scores, np.flatnonzero(np.diff(owners, prepend=-1)))


@dataclass(frozen=True)
class Rules:
    """Which wrong candidates of a query may be its hard negatives; None leaves a rule out.

    Attributes:
        first, last: of the candidates, best first, `first` are left out and no more than `last` looked at.
        below_share: a score is less than this share of the positive's (TopK-PercPos of NV-Retriever, arXiv 2407.15831).
            Of a negative score the share is as far below it: s - (1 - share) |s|.
        margin: less than the positive's minus this (TopK-MarginPos).
        below: less than this (TopK-Abs).
        keep: so many that are left, the best ones.
    """

    first: int
    last: int
    keep: int
    below_share: float | None = None
    margin: float | None = None
    below: float | None = None

    def apply(self, piece: Piece) -> tuple[np.ndarray, Counter[str]]:
        """(q, top) the candidates that are kept, and how many are not, by the first rule that leaves them out."""
        left = piece.candidates != NO_ROW  # (q, top)
        scores, positive = piece.scores.astype(np.float64), piece.positive.astype(np.float64)[:, None]
        dropped: Counter[str] = Counter(dict(zip((POSITIVE, ALIKE), piece.passed.tolist())))
        rules: list[tuple[str, np.ndarray]] = []
        rank = np.broadcast_to(np.arange(left.shape[1]), left.shape)
        if self.first:
            rules.append((f"among the first {self.first}", rank < self.first))
        if self.below_share is not None:
            share = np.where(positive < 0, 2 - self.below_share, self.below_share)
            rules.append((f"not below {self.below_share:g} of the positive's score", scores >= share * positive))
        if self.margin is not None:
            rules.append((f"not {self.margin:g} below the positive's score", scores >= positive - self.margin))
        if self.below is not None:
            rules.append((f"not below {self.below:g}", scores >= self.below))
        for reason, out in rules:
            dropped[reason] = int((left & out).sum())
            left &= ~out
        beyond = left & (left.cumsum(axis=1) > self.keep)
        dropped[f"beyond the {self.keep} that are kept"] = int(beyond.sum())
        return left & ~beyond, dropped


def drop_judged(kept: np.ndarray, answers: Sequence[Sequence[float]], above: float) -> int:
    """Take from kept (q, top) the candidates that a reranker takes for right, and say how many.

    Args:
        answers: P(Yes) of the kept candidates of each query that has any.
    """
    yes = np.concatenate([np.array(of_query) for of_query in answers]) if answers else np.empty(0)
    rows, columns = np.nonzero(kept)  # in the order of the answers
    wrong = yes > above
    kept[rows[wrong], columns[wrong]] = False
    return int(wrong.sum())
