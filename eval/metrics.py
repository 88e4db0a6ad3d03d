"""Retrieval metrics: pure functions from rankings to numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from lamra.datasets.rankings import RankedQuery, Ranking
from lamra.datasets.tasks import RetrievalTask

DEPTH = 10  # that nDCG and MRR look at


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


def average_precision_at_k(ranking: Sequence[int], relevant: Collection[int], k: int) -> float:
    """CIRCO's AP@k (arXiv 2303.15247, section 4): precision at the rank of each hit, summed, over min(relevant, k).

    Args:
        ranking: gallery rows, best first. A k beyond them counts all.
        relevant: the gallery rows that answer the query; without any it is 0.
    """
    hits = [rank for rank, row in enumerate(ranking[:k], start=1) if row in relevant]
    return sum(number / rank for number, rank in enumerate(hits, start=1)) / min(len(relevant), k) if hits else 0.0


def measures(task: RetrievalTask, ranking: Ranking) -> dict[str, float]:
    """Means of `measures_by_query` over the task's queries, and of map@10 over those of each of its aspects.

    Raises:
        ValueError: the ranking is not of each query once.
    """
    found = measures_by_query(task, ranking)
    if not found:
        raise ValueError("recall of no queries is undefined")
    means = {name: sum(of_query[name] for of_query in found) / len(found) for name in found[0]}
    of_aspect: dict[str, list[float]] = {}
    for ranked, of_query in zip(ranking, found):
        for aspect in task.aspects[ranked.query] if task.aspects else ():
            of_aspect.setdefault(aspect, []).append(of_query[f"map@{DEPTH}"])
    return means | {
        f"map@{DEPTH} {aspect}": sum(of_aspect[aspect]) / len(of_aspect[aspect]) for aspect in sorted(of_aspect)
    }


def measures_by_query(task: RetrievalTask, ranking: Ranking) -> list[dict[str, float]]:
    """Of each query in the order of `ranking`; a query without an answer has 0 everywhere.

    - recall@k: 1 if one of the first k answers it, else 0, as M-BEIR counts.
    - ndcg@10: sum of 1 / log2(1 + rank) over the answers among the first 10, divided by the same of the best order.
    - mrr@10: 1 / rank of the first answer, 0 beyond rank 10.
    - map@k, where the task's measure is "map": the average precision. Recall is then of the first answer.

    Nothing where a server has the answers.

    Raises:
        ValueError: the ranking is not of each query once.
    """
    if sorted(ranked.query for ranked in ranking) != list(range(len(task.queries))):
        raise ValueError(
            f"the ranking is of {len({ranked.query for ranked in ranking})} of the {len(task.queries)} queries: recall "
            "is over all of them"
        )
    if task.server:
        return [{} for _ in ranking]
    found = []
    for ranked in ranking:
        answers = set(task.answers[ranked.query])
        rows = _answers_last_of_ties(ranked, answers) if task.tie_is_miss else ranked.candidates
        looked_for = task.answers[ranked.query][:1] if task.measure == "map" else answers
        of_query = {f"recall@{k}": recall_at_k([rows], [looked_for], k) for k in task.ks}
        if task.measure == "map":
            of_query |= {f"map@{k}": average_precision_at_k(rows, answers, k) for k in task.ks}
        hits = [rank for rank, row in enumerate(rows[:DEPTH], start=1) if row in answers]
        best = sum(map(_gain, range(1, min(len(answers), DEPTH) + 1)))
        of_query[f"ndcg@{DEPTH}"] = sum(map(_gain, hits)) / best if hits else 0.0
        of_query[f"mrr@{DEPTH}"] = 1 / hits[0] if hits else 0.0
        found.append(of_query)
    return found


def chance(task: RetrievalTask) -> float:
    """What counts, of rankings in random order, the mean over queries.

    N is the number of candidates that a query has, A how many of them answer it. Recall@k is 1 - C(N - A, k) / C(N, k).
    An average precision is expected from this: rank r has an answer in A of N rankings, and each rank before it then
    has one in A - 1 of N - 1.
    """
    k, total = task.counted, 0.0
    for query, answers in enumerate(task.answers):
        excluded = task.excluded[query] if task.excluded else ()
        count = len(task.candidates[query]) if task.candidates else len(task.gallery) - len(set(excluded))
        right = len(set(answers))
        if task.measure == "map":
            ranks = range(1, min(k, count) + 1)
            hits = sum(right / count * (1 + (rank - 1) * (right - 1) / max(count - 1, 1)) / rank for rank in ranks)
            total += hits / min(right, k) if right else 0.0
        else:
            total += 1 - math.comb(count - right, k) / math.comb(count, k) if count > k else bool(answers)
    return total / len(task.answers)


def _gain(rank: int) -> float:
    return 1 / math.log2(1 + rank)


def _answers_last_of_ties(ranked: RankedQuery, answers: Collection[int]) -> list[int]:
    """The candidates again, each answer behind the wrong candidates of its score."""
    order = sorted(zip(ranked.candidates, ranked.scores), key=lambda pair: (-pair[1], pair[0] in answers))
    return [row for row, _ in order]


def average(counted: Mapping[str, int], metrics: Mapping[str, Mapping[str, float]]) -> float:
    """Mean over tasks of the recall that counts: on M-BEIR R@5, R@10 for Fashion200K and FashionIQ.

    Args:
        counted: name of a task -> the k that counts.
    """
    return sum(metrics[name][f"recall@{k}"] for name, k in counted.items()) / len(counted)
