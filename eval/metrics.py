"""Retrieval metrics: pure functions from rankings to numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from lamra.datasets.rankings import RankedQuery, Ranking
from lamra.datasets.tasks import RetrievalTask


def recall_at_k(ranking: Sequence[Sequence[int]], relevant: Sequence[Collection[int]], k: int) -> float:
    """Share of queries with at least one relevant candidate among their first k: M-BEIR's recall and Flickr's.

    Args:
        ranking: for each query gallery rows, best first. A k beyond them counts all.
        relevant: for each query the gallery rows that answer it. A query without any is a miss, as in M-BEIR.

    Raises:
        ValueError: sizes that do not fit, or no query.
    """
    if len(ranking) != len(relevant) or k < 1:
        raise ValueError(f"recall@{k} of {len(ranking)} ranked queries with relevant candidates of {len(relevant)}")
    if len(relevant) == 0:
        raise ValueError("recall of no queries is undefined")
    return sum(not set(answers).isdisjoint(found[:k]) for answers, found in zip(relevant, ranking)) / len(relevant)


def recalls(task: RetrievalTask, ranking: Ranking) -> dict[str, float]:
    """{"recall@k": share of the task's queries that are answered among their first k} for each of its ks.

    Raises:
        ValueError: the ranking is not of each query once.
    """
    if sorted(ranked.query for ranked in ranking) != list(range(len(task.queries))):
        raise ValueError(
            f"the ranking is of {len({ranked.query for ranked in ranking})} of the {len(task.queries)} queries: recall "
            "is over all of them"
        )
    answers = [task.answers[ranked.query] for ranked in ranking]
    found = [ranked.candidates for ranked in ranking]
    if task.tie_is_miss:
        found = [_answers_last_of_ties(ranked, right) for ranked, right in zip(ranking, answers)]
    return {f"recall@{k}": recall_at_k(found, answers, k) for k in task.ks}


def _answers_last_of_ties(ranked: RankedQuery, answers: Collection[int]) -> list[int]:
    """The candidates again, each answer behind the wrong candidates of its score."""
    order = sorted(zip(ranked.candidates, ranked.scores), key=lambda pair: (-pair[1], pair[0] in answers))
    return [row for row, _ in order]


def average(tasks: Iterable[RetrievalTask], metrics: Mapping[str, Mapping[str, float]]) -> float:
    """Mean over tasks of the recall that counts: on M-BEIR R@5, R@10 for Fashion200K and FashionIQ."""
    counted = [metrics[task.name][f"recall@{task.counted}"] for task in tasks]
    return sum(counted) / len(counted)
