"""The ranking that follows from a retriever's scores and a reranker's answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lamra.datasets.columns import Columns, Piece, RankedQuery, Ranking


def reranked(scores: Sequence[float], answer: list, style: str, weight: float) -> tuple[list[int], list[float]]:
    """The new order of a query's candidates, as positions in the old order, and their scores.

    Pointwise: s_ret + weight * P(Yes) for the candidates that have an answer (arXiv 2412.01720, section 3.4). Listwise
    gives an order and no scores: each position keeps the retriever's score of that position. Candidates beyond the
    depth follow as they were; they score no higher than any before them.
    """
    depth = len(answer)
    if style == "listwise":
        return answer + list(range(depth, len(scores))), list(scores)
    fused = [score + weight * yes for score, yes in zip(scores, answer)]
    order = sorted(range(depth), key=lambda position: -fused[position])
    return order + list(range(depth, len(scores))), [fused[position] for position in order] + list(scores[depth:])


def rerank(ranking: Ranking, answers: Sequence[list], style: str, weight: float) -> Columns:
    """`reranked` for each query of a ranking; `answers` are in its order."""

    def one_by_one() -> Iterator[RankedQuery]:
        for (query, candidates, scores), answer in zip(ranking, answers, strict=True):
            order, new_scores = reranked(scores, answer, style, weight)
            yield RankedQuery(query, [candidates[position] for position in order], new_scores)

    return Columns([Piece.of(one_by_one())])
