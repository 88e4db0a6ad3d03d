"""The one evaluation: tasks to embeddings, to rankings, to recall."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lamra.common.arrays import distinct
from lamra.common.processes import heartbeat, is_first_process
from lamra.datasets.columns import Columns, Piece, RankedQuery
from lamra.datasets.tasks import Items, RetrievalTask
from lamra.eval.cache.shards import RowsOf, Shards
from lamra.eval.metrics import measures
from lamra.eval.search import Blocks, Embeddings, as_float32, block_top_k
from lamra.eval.stored import Stored, search_stored

SEARCH_MEMORY = 4.0  # GiB
READ_FOR = 512  # queries with candidates of their own, whose embeddings are read together


def evaluate(
    tasks: Sequence[RetrievalTask],
    embed: Callable[[Items], Embeddings],
    *,
    depth: int,
    search_memory: float = SEARCH_MEMORY,
    device: torch.device | str = "cpu",
    truncate_dim: int | None = None,
    vectors: str = "float32",
    rescore: int = 0,
) -> Iterator[tuple[RetrievalTask, Columns, dict[str, float]]]:
    """Each task's ranking and what it is worth, see metrics.measures. Tasks that share a gallery are searched together.

    All processes must iterate; the first process alone receives what is found.

    Args:
        embed: to (N, D) float32 embeddings of unit norm. Called once for each different object among queries and
            galleries, by all processes.
        depth: candidates of each query in the rankings, at least the largest k; of its own candidates it ranks all.
        search_memory: GiB that a process's search may use.
        truncate_dim, vectors, rescore: see stored.search_stored; rescore is 0, or `depth` and more. As many
            more candidates are scored again as a query may not find.

    Raises:
        UserError: the memory is too little, embeddings are not finite, or they have less than `truncate_dim`
            dimensions.
    """
    known: dict[int, Embeddings] = {}
    stored_as: dict[str, Any] = {"truncate_dim": truncate_dim, "vectors": vectors, "rescore": rescore}

    def embedded(items: Items) -> Embeddings:
        if id(items) not in known:
            known[id(items)] = embed(items)
        return known[id(items)]

    for gallery in {id(task.gallery): task.gallery for task in tasks}.values():
        sharing = [task for task in tasks if task.gallery is gallery]
        of_gallery = embedded(gallery)
        of_queries = [embedded(task.queries) for task in sharing]
        whole = [(task, query) for task, query in zip(sharing, of_queries) if task.candidates is None]
        rankings = _searched(whole, of_gallery, depth, search_memory, device, stored_as)
        if not is_first_process():
            continue
        with heartbeat("the first process measures and writes rankings"):
            for task, query in zip(sharing, of_queries):
                if task.candidates is None:
                    ranking = next(rankings)
                else:
                    ranking = _ranked_stored(query, of_gallery, task.candidates, device, **stored_as)
                yield task, ranking, measures(task, ranking)


def _searched(
    tasks: Sequence[tuple[RetrievalTask, Embeddings]],
    gallery: Embeddings,
    depth: int,
    search_memory: float,
    device: torch.device | str,
    stored_as: Mapping[str, Any],
) -> Iterator[Columns]:
    """The rankings of tasks whose queries search the whole gallery, which is read once for all of them."""
    if not tasks:
        return iter(())
    most_excluded = max(len(rows) for task, _ in tasks for rows in task.excluded or ((),))
    k, rescore = depth + most_excluded, stored_as["rescore"] and stored_as["rescore"] + most_excluded
    blocks = Blocks.within(search_memory * 2**30, gallery.shape[1], max(k, rescore))
    together = _joined([query for _, query in tasks])
    scores, rows = search_stored(together, gallery, k, blocks, device, **{**stored_as, "rescore": rescore})
    sizes = [len(query) for _, query in tasks]
    parts = zip(tasks, rows.split(sizes), scores.split(sizes))
    return (_without(task.excluded, rows.numpy(), scores.numpy(), depth) for (task, _), rows, scores in parts)


def _without(excluded: Sequence[Collection[int]] | None, rows: np.ndarray, scores: np.ndarray, depth: int) -> Columns:
    """The first `depth` of rows and scores, (q, k) each, without those that a query excludes."""
    kept = np.ones(rows.shape, dtype=bool)
    for query, of_query in enumerate(excluded or ()):
        kept[query] = ~np.isin(rows[query], list(of_query))
    kept &= kept.cumsum(axis=1) <= depth
    starts = np.append(0, np.cumsum(kept.sum(axis=1)))
    return Columns([Piece(np.arange(len(rows)), starts, rows[kept].astype(np.int32), scores[kept])])


def _ranked_stored(
    queries: Embeddings,
    gallery: Embeddings,
    candidates: Sequence[Sequence[int]],
    device: torch.device | str,
    *,
    truncate_dim: int | None,
    vectors: str,
    rescore: int,
) -> Columns:
    """`_ranked` in a gallery of smaller vectors; what is not among a query's best `rescore` is left out."""
    if truncate_dim is None and vectors == "float32":
        return _ranked(queries, gallery, candidates, device)
    ranking = _ranked(Stored(queries, truncate_dim), Stored(gallery, truncate_dim, vectors), candidates, device)
    if not rescore:
        return ranking
    return _ranked(queries, gallery, [ranked.candidates[:rescore] for ranked in ranking], device)


def _ranked(
    queries: Embeddings, gallery: Embeddings, candidates: Sequence[Sequence[int]], device: torch.device | str
) -> Columns:
    """The ranking of each query's own candidates; ties go to the lower row."""
    return Columns([Piece.of(_ranked_one_by_one(queries, gallery, candidates, device))])


def _ranked_one_by_one(
    queries: Embeddings, gallery: Embeddings, candidates: Sequence[Sequence[int]], device: torch.device | str
) -> Iterator[RankedQuery]:
    for start in range(0, len(candidates), READ_FOR):
        part = [np.sort(np.array(own, dtype=np.int64)) for own in candidates[start : start + READ_FOR]]
        rows = distinct(np.concatenate(part))  # (n,), all that these queries rank
        block = as_float32(RowsOf(gallery, rows)[:], device)  # (n, D)
        together = as_float32(queries[start : start + READ_FOR], device)  # (q, D)
        for number, own in enumerate(part):
            # Summed row by row: a matrix product may round equal embeddings differently, and their tie would be lost.
            products = (together[number] * block[torch.from_numpy(np.searchsorted(rows, own))]).sum(dim=1)  # (m,)
            scores, columns = block_top_k(products[None], len(own))  # (1, m) each
            yield RankedQuery(start + number, own[columns[0].cpu().numpy()].tolist(), scores[0].tolist())


def _joined(parts: Sequence[Embeddings]) -> Embeddings:
    shards = [part for part in parts if isinstance(part, Shards)]
    if len(shards) == len(parts):
        return Shards([file for part in shards for file in part.files])
    return torch.cat([torch.as_tensor(part[:]) for part in parts])
