"""What a retriever confuses: the best candidates of training queries that are wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from lamra.common.files import sha256
from lamra.common.processes import broadcast, is_first_process
from lamra.datasets.items import Item
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.rows import MODALITIES, dataset_of
from lamra.datasets.rankings import RankedQuery
from lamra.eval.cache.shards import RowsOf
from lamra.eval.search import Blocks, Embeddings, search

QUERIES_TOGETHER = 16_384  # of a search: other processes wait while the first looks which candidates are usable


class TrainingQueries:
    """The queries of training pairs, each once, with its instruction of the first epoch.

    Args:
        drawn_by: what decides them beside the file.

    Attributes:
        rows: the row of each query, the first where it is repeated.
    """

    def __init__(self, pairs: MBEIRPairs, drawn_by: Mapping[str, object] | None = None):
        self.pairs, self.drawn_by = pairs, drawn_by or {}
        self.name, self.path = pairs.queries.name, pairs.queries.path
        self.rows = np.unique(pairs.queries.rows_of(pairs.queries.keys))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, query: int) -> Item:
        return self.pairs[int(self.rows[query])].query

    def id(self, query: int) -> str:
        return self.pairs.queries.id(int(self.rows[query]))


def mine(
    queries: TrainingQueries,
    embeddings: Embeddings,
    gallery: Embeddings,
    *,
    top: int,
    own_kind: bool,
    search_depth: int | None,
    search_memory: float,
    device: torch.device | str,
) -> list[RankedQuery]:
    """For each query the first `top` usable rows of the pool and their scores; empty on all processes but the first.

    Positives and candidates that look like them are not usable: where they leave too few, these queries search twice as
    deep, to the end if need be. With search_depth they do not.

    Args:
        own_kind: queries of a kind search that kind's candidates only, so that the depth does not depend on what else
            the pool holds.
        search_memory: GiB that a process's search may use.
    """
    pairs = queries.pairs
    found: dict[int, RankedQuery] = {}
    for members, candidates in searched_together(queries, own_kind):
        depth = search_depth or 2 * top
        while len(members):
            blocks = Blocks.within(search_memory * 2**30, gallery.shape[1], depth)
            result = search(RowsOf(embeddings, members), RowsOf(gallery, candidates), depth, blocks, device)
            lacking = []
            if is_first_process():
                for query, scores, columns in zip(members.tolist(), *(table.tolist() for table in result)):
                    rows = candidates[columns].tolist()
                    score_of = dict(zip(rows, scores))
                    wrong = usable(pairs, pairs.answers(int(queries.rows[query])), rows)
                    kept = list(islice(wrong, top))  # it reads no more rows than that
                    found[query] = RankedQuery(query, kept, [score_of[row] for row in kept])
                    if len(kept) < top and depth < len(candidates) and not search_depth:
                        lacking.append(query)
            members, depth = np.array(broadcast(lacking), dtype=np.int64), 2 * depth
    return [found[query] for query in sorted(found)]


def searched_together(queries: TrainingQueries, own_kind: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of queries, and the rows of the pool that they search: all, or the kinds of their positives."""
    pairs, pool = queries.pairs, queries.pairs.pool
    kinds = dataset_of(pool.keys) * len(MODALITIES) + pool.modalities  # (N,)
    kinds = kinds if own_kind else np.zeros_like(kinds)
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for query, row in enumerate(queries.rows):
        members[tuple(np.unique(kinds[pairs.answers(int(row))]).tolist())].append(query)
    for wanted, together in members.items():
        candidates = np.flatnonzero(np.isin(kinds, wanted))
        for start in range(0, len(together), QUERIES_TOGETHER):
            yield np.array(together[start : start + QUERIES_TOGETHER]), candidates


def usable(pairs: MBEIRPairs, answers: list[int], candidates: list[int]) -> Iterator[int]:
    """The candidates of a query that are wrong, in order: no answer, and none that looks or reads like an answer."""
    right = [pairs.pool[row] for row in answers]
    others = (row for row in candidates if row not in answers)
    return (row for row in others if not any(same(pairs.pool[row], item) for item in right))


def same(a: Item, b: Item) -> bool:
    """Whether two candidates have the same text or the same picture, or both nothing at all."""
    if (a.text and a.text == b.text) or not (a.text or a.images or b.text or b.images):
        return True
    return any(_same_file(Path(str(image)), Path(str(other))) for image in a.images for other in b.images)


def _same_file(a: Path, b: Path) -> bool:
    return a == b or (_size(a) == _size(b) and sha256(a) == sha256(b))


@lru_cache(maxsize=1_000_000)
def _size(path: Path) -> int:
    return path.stat().st_size
