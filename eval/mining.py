"""What a retriever confuses: the best candidates of training queries that are wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState

from lamra.common.files import sha256
from lamra.common.processes import is_first_process, of_all_processes, process_rank, world_size
from lamra.datasets.items import Item
from lamra.datasets.mbeir.pairs import MBEIRPairs, open_pairs
from lamra.datasets.mbeir.rows import MODALITIES, dataset_of
from lamra.datasets.rankings import RankedQuery
from lamra.eval.cache.embeddings import EmbeddingsCache
from lamra.eval.cache.shards import RowsOf
from lamra.eval.inference import load_retriever
from lamra.eval.search import Blocks, Embeddings, search
from lamra.eval.training_files import MiningFlags, SeededTrainingFiles

QUERIES_TOGETHER = 16_384  # of a search, and of what is in memory at a time

POSITIVE, ALIKE = "a positive of the query", "looks or reads like one"


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


class Embedded(NamedTuple):
    """Training queries, the embeddings of both sides, and what they were made by."""

    queries: TrainingQueries
    embeddings: Embeddings
    gallery: Embeddings
    made_by: dict[str, Any]


def embedded(args: MiningFlags, folder: Path) -> Embedded:
    """Open the files and embed queries and pool, into `folder`; a restarted run takes what is there.

    The model is gone when it returns. All processes must call this.
    """
    queries = open_training_queries(args)
    retriever = load_retriever(args)
    provenance = retriever.provenance(args) | args.kept_as
    cache = EmbeddingsCache(folder / "embeddings", retriever, provenance, args.shard_size)
    gallery, embeddings = cache.embed(queries.pairs.pool), cache.embed(queries)
    return Embedded(queries, embeddings, gallery, {**provenance, "files": cache.files, **queries.drawn_by})


def open_training_queries(args: SeededTrainingFiles) -> TrainingQueries:
    """The training queries that the flags name."""
    with PartialState().main_process_first():  # it writes the indexes
        pairs = open_pairs(args.data_path, args.queries, args.pool, args.instructions, seed=args.seed)
    drawn_by: dict[str, str | int] = {"instructions": sha256(pairs.instructions.path), "seed": args.seed}
    if pairs.notes:  # then the pool decides which queries there are, and between which positives they draw
        drawn_by["pool"] = sha256(pairs.pool.path)
    return TrainingQueries(pairs, drawn_by)


class MinedBlock(NamedTuple):
    """What was found for the queries of one search. On all processes but the first nothing was.

    Attributes:
        number: of the block; each run over the same queries has the same blocks.
        found: of each query the usable rows of the pool, best first, and their scores; ascending by query.
        passed: POSITIVE and ALIKE -> how many candidates were passed over for it.
    """

    number: int
    found: list[RankedQuery]
    passed: Counter[str]


def mine(queries: TrainingQueries, embeddings: Embeddings, gallery: Embeddings, **search: Any) -> list[RankedQuery]:
    """`mine_blocks` for all queries at once; empty on all processes but the first."""
    blocks = mine_blocks(queries, embeddings, gallery, **search)
    return sorted((ranked for block in blocks for ranked in block.found), key=lambda ranked: ranked.query)


def mine_blocks(
    queries: TrainingQueries,
    embeddings: Embeddings,
    gallery: Embeddings,
    *,
    top: int,
    own_kind: bool,
    search_depth: int | None,
    search_memory: float,
    device: torch.device | str,
    done: Collection[int] = (),
) -> Iterator[MinedBlock]:
    """For each query the first `top` usable rows of the pool and their scores. All processes must take every block.

    Positives and candidates that look like them are not usable: where they leave too few, these queries search twice as
    deep, to the end if need be. With search_depth they do not.

    Args:
        own_kind: queries of a kind search that kind's candidates only, so that the depth does not depend on what else
            the pool holds.
        search_memory: GiB that a process's search may use.
        done: numbers of blocks to pass over.
    """
    pairs = queries.pairs
    for number, (members, candidates) in enumerate(searched_together(queries, own_kind)):
        if number in done:
            continue
        found: dict[int, tuple[RankedQuery, Counter[str]]] = {}
        depth = search_depth or 2 * top
        while len(members):
            blocks = Blocks.within(search_memory * 2**30, gallery.shape[1], depth)
            result = search(RowsOf(embeddings, members), RowsOf(gallery, candidates), depth, blocks, device)
            looked = []  # at this process's share of the queries
            for at in range(process_rank(), len(members), world_size()):
                query, scores, columns = int(members[at]), *(table[at].tolist() for table in result)
                rows, passed = candidates[columns].tolist(), Counter[str]()
                score_of = dict(zip(rows, scores))
                wrong = usable(pairs, pairs.answers(int(queries.rows[query])), rows, passed)
                kept = list(islice(wrong, top))  # it reads no more rows than that
                looked.append((RankedQuery(query, kept, [score_of[row] for row in kept]), passed))
            found |= {ranked.query: (ranked, passed) for ranked, passed in of_all_processes(looked)}
            deeper = depth < len(candidates) and not search_depth
            lacking = [query for query in members.tolist() if len(found[query][0].candidates) < top and deeper]
            members, depth = np.array(lacking, dtype=np.int64), 2 * depth
        if not is_first_process():
            found = {}
        passed = sum((of_query for _, of_query in found.values()), Counter[str]())
        yield MinedBlock(number, [found[query][0] for query in sorted(found)], passed)


def searched_together(queries: TrainingQueries, own_kind: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of queries, and the rows of the pool that they search: all, or the kinds of their positives."""
    pairs, pool = queries.pairs, queries.pairs.pool
    kinds = dataset_of(pool.keys) * len(MODALITIES) + pool.modalities  # (N,)
    kinds = kinds if own_kind else np.zeros_like(kinds)
    owners, answers = pairs.answers_of(queries.rows)
    kinds_of = np.split(kinds[answers], np.flatnonzero(np.diff(owners)) + 1)  # of each query's positives
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for query, of_query in enumerate(kinds_of):
        members[tuple(sorted(set(of_query.tolist())))].append(query)
    for wanted, together in members.items():
        candidates = np.flatnonzero(np.isin(kinds, wanted))
        for start in range(0, len(together), QUERIES_TOGETHER):
            yield np.array(together[start : start + QUERIES_TOGETHER]), candidates


def usable(pairs: MBEIRPairs, answers: list[int], candidates: list[int], passed: Counter[str]) -> Iterator[int]:
    """The candidates of a query that are wrong, in order: no answer, and none that looks or reads like an answer.

    Args:
        passed: counts those before the last that was taken.
    """
    right = [pairs.pool[row] for row in answers]
    for row in candidates:
        if row in answers:
            passed[POSITIVE] += 1
            continue
        item = pairs.pool[row]
        if any(same(item, answer) for answer in right):
            passed[ALIKE] += 1
            continue
        yield row


def same(a: Item, b: Item) -> bool:
    """Whether two candidates have the same text or the same picture, or both nothing at all."""
    text, other_text, images, others = a.text, b.text, a.images, b.images
    if (text and text == other_text) or not (text or images or other_text or others):
        return True
    return any(_same_file(Path(str(image)), Path(str(other))) for image in images for other in others)


def _same_file(a: Path, b: Path) -> bool:
    return a == b or (_size(a) == _size(b) and sha256(a) == sha256(b))


@lru_cache(maxsize=1_000_000)
def _size(path: Path) -> int:
    return path.stat().st_size
