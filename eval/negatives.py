"""Hard negatives from what was mined: which of a query's wrong candidates training may draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lamra.datasets.columns import Piece
from lamra.eval.mining import ALIKE, POSITIVE


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

    def apply(self, piece: Piece, passed: Sequence[int]) -> tuple[np.ndarray, Counter[str]]:
        """(L,) which candidates are kept, and how many are not, by the first rule that leaves them out.

        Args:
            passed: how many were passed over before, as POSITIVE and as ALIKE.
        """
        assert piece.positive is not None
        rank = piece.ranks
        left = np.ones(len(rank), dtype=bool)  # (L,)
        scores, positive = piece.scores.astype(np.float64), piece.positive.astype(np.float64)[piece.owners]
        dropped: Counter[str] = Counter(dict(zip((POSITIVE, ALIKE), passed)))
        rules: list[tuple[str, np.ndarray]] = []
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
        so_far = np.append(0, np.cumsum(left))  # (L + 1,)
        beyond = left & (so_far[1:] - so_far[piece.starts[:-1]][piece.owners] > self.keep)
        dropped[f"beyond the {self.keep} that are kept"] = int(beyond.sum())
        return left & ~beyond, dropped


def drop_judged(kept: np.ndarray, answers: Sequence[Sequence[float]], above: float) -> int:
    """Take from kept (L,) the candidates that a reranker takes for right, and say how many.

    Args:
        answers: P(Yes) of the kept candidates of each query that has any.
    """
    yes = np.concatenate([np.array(of_query) for of_query in answers]) if answers else np.empty(0)
    wrong = yes > above
    kept[np.flatnonzero(kept)[wrong]] = False  # in the order of the answers
    return int(wrong.sum())
