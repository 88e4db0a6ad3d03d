"""What a retriever confuses: the best candidates of training queries that are wrong.

The search is kept in pieces, before any rule: other rules need no other search, and memory holds one piece.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState

from lamra.common.arrays import distinct
from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.files import remove
from lamra.common.processes import first_process_first, of_all_processes, on_first_process, process_rank, world_size
from lamra.datasets.columns import SUFFIX, Piece, columns_file, rows_of
from lamra.datasets.items import Item
from lamra.datasets.mbeir.pairs import MBEIRPairs, open_pairs
from lamra.eval.alike import Contents
from lamra.eval.cache.embeddings import EmbeddingsCache
from lamra.eval.cache.manifest import check_manifest
from lamra.eval.cache.shards import RowsOf
from lamra.eval.inference import load_retriever
from lamra.eval.search import Blocks, Embeddings, search
from lamra.eval.training_files import MiningFlags, SeededTrainingFiles
from lamra.models.digests import file_sha256

QUERIES_TOGETHER = 16_384  # of a search, and of a file of what it found
LINES_TOGETHER = 2**20  # of candidates that a process compares with positives

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
        self.rows = distinct(pairs.queries.rows_of(pairs.queries.keys))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, query: int) -> Item:
        return self.pairs[int(self.rows[query])].query

    @property
    def keys(self) -> np.ndarray:
        """(N,) the ids as integers."""
        return self.pairs.queries.keys[self.rows]

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
    with first_process_first("the first process reads M-BEIR's files"):  # and writes the indexes
        pairs = open_pairs(args.data_path, args.queries, args.pool, args.instructions, seed=args.seed)
    drawn_by: dict[str, str | int] = {"instructions": file_sha256(pairs.instructions.path), "seed": args.seed}
    if pairs.notes:  # then the pool decides which queries there are, and between which positives they draw
        drawn_by["pool"] = file_sha256(pairs.pool.path)
    return TrainingQueries(pairs, drawn_by)


def mined_pieces(
    of: Embedded,
    folder: Path,
    *,
    top: int,
    own_kind: bool,
    search_depth: int | None,
    search_memory: float,
    device: torch.device | str,
    positives: bool = False,
    anew: bool = False,
) -> list[Path]:
    """For each query the first `top` candidates that are wrong, and their scores: a file for each block of queries.

    A restarted run takes the files that are there. All processes must call this, and see the folder: each looks at a
    part of a block's queries, and they write the blocks in turn.

    Positives and candidates that show what one of them shows are passed over: where they leave too few, these queries
    search twice as deep, to the end if need be. With search_depth they do not.

    Args:
        own_kind: queries of a kind search that kind's candidates only, so that the depth does not depend on what else
            the pool holds.
        search_memory: GiB that a process's search may use.
        positives: a file tells the similarity of each query's best positive, too.
        anew: files that were made otherwise are removed, not refused.

    Returns:
        Files that read_columns reads, of numbers of `of.queries` and rows of the pool; their metadata tells how many
        candidates were "passed" over as POSITIVE and as ALIKE.

    Raises:
        UserError: the folder holds files that were made otherwise, unless `anew`.
    """
    decided_by = {**of.made_by, "top": top, "own_kind": own_kind, "search_depth": search_depth}
    decided_by["queries_together"] = QUERIES_TOGETHER
    on_first_process(lambda: _begin(folder, decided_by, anew))
    done = on_first_process(lambda: {path.name for path in folder.glob(f"*{SUFFIX}")})
    pool, files = of.queries.pairs.pool, list[Path]()
    rows = rows_of(of.queries, pool)
    contents = None
    for number, (members, candidates) in enumerate(searched_together(of.queries, own_kind)):
        files.append(folder / f"{number:05d}{SUFFIX}")
        if files[-1].name in done:
            continue
        contents = contents or Contents(pool)
        found: list[Piece] = []
        passed, depth = np.zeros(2, dtype=np.int64), search_depth or 2 * top
        while len(members):
            blocks = Blocks.within(search_memory * 2**30, of.gallery.shape[1], depth)
            searched = RowsOf(of.embeddings, members), RowsOf(of.gallery, candidates)
            scores, columns = (table.numpy() for table in search(*searched, depth, blocks, device))  # (q, depth) each
            parts = np.array_split(np.arange(len(members)), max(1, scores.size // LINES_TOGETHER, world_size()))
            first, last = (len(parts) * rank // world_size() for rank in (process_rank(), process_rank() + 1))
            looked = [
                wrong_candidates(of.queries, contents, members[part], candidates[columns[part]], scores[part], top)
                for part in parts[first:last]
            ]
            pieces, passed_over = zip(*of_all_processes(looked))
            piece = Piece.joined(pieces)
            deeper = depth < len(candidates) and not search_depth
            lacking = (piece.counts < top) & deeper  # (q,)
            found.append(piece.take(np.flatnonzero(~lacking)))
            passed += np.concatenate(passed_over)[~lacking].sum(axis=0)
            members, depth = members[lacking], 2 * depth
        if number % world_size() == process_rank():
            piece = Piece.joined(found)
            piece = piece.take(np.argsort(piece.queries))
            if positives:
                piece = piece._replace(positive=best_positive(of, piece.queries))
            with columns_file(files[-1], {**rows, "passed": passed.tolist()}) as write:
                write(piece)
    PartialState().wait_for_everyone()
    return files


def _begin(folder: Path, decided_by: Mapping[str, Any], anew: bool) -> None:
    try:
        check_manifest(folder, decided_by, "mined candidates")
    except UserError:
        if not anew:
            raise
        note(f"{folder} holds another search, and is made anew")
        remove(folder)
        check_manifest(folder, decided_by, "mined candidates")


def wrong_candidates(
    queries: TrainingQueries, contents: Contents, numbers: np.ndarray, rows: np.ndarray, scores: np.ndarray, top: int
) -> tuple[Piece, np.ndarray]:
    """The first `top` candidates of q queries that are wrong: no positive, and showing nothing that one shows.

    Args:
        numbers: (q,) of the queries.
        rows, scores: (q, d) of their candidates, best first.

    Returns:
        These, and (q, 2) how many before the last of them were passed over as POSITIVE and as ALIKE.
    """
    owners, answers = queries.pairs.answers_of(queries.rows[numbers])
    positive, alike = contents.compare(rows, owners, answers)
    wrong = ~(positive | alike)
    looked = wrong.cumsum(axis=1, dtype=np.int32) - wrong < top  # (q, d)
    kept = wrong & looked
    starts = np.append(0, np.cumsum(kept.sum(axis=1)))
    passed = np.stack([(of_kind & looked).sum(axis=1) for of_kind in (positive, alike)], axis=1)
    return Piece(numbers, starts, rows[kept].astype(np.int32), scores[kept]), passed


def best_positive(of: Embedded, numbers: np.ndarray) -> np.ndarray:
    """(q,) float32 similarity of some queries, ascending, to the best of the positives of each."""
    owners, answers = of.queries.pairs.answers_of(of.queries.rows[numbers])
    rows = distinct(answers)
    of_query = RowsOf(of.embeddings, numbers)[:].numpy()  # (q, D)
    of_answer = RowsOf(of.gallery, rows, read_together=64)[:].numpy()  # they lie far apart
    scores = np.empty(len(owners), dtype=np.float32)
    for start in range(0, len(owners), 1024):
        some = slice(start, start + 1024)
        scores[some] = (of_query[owners[some]] * of_answer[np.searchsorted(rows, answers[some])]).sum(axis=1)
    return np.maximum.reduceat(scores, np.flatnonzero(np.diff(owners, prepend=-1)))


@contextmanager
def mined_file(path: Path, queries: TrainingQueries) -> Iterator[Callable[[Piece], None]]:
    """Open a ranking of wrong candidates for training to read; yields what writes a piece of numbers of `queries`."""
    pairs = queries.pairs
    about = {**rows_of(pairs.queries, pairs.pool), "answers": pairs.answers_sha256}
    with columns_file(path, about) as write:
        yield lambda piece: write(piece._replace(queries=queries.rows[piece.queries], positive=None))


def searched_together(queries: TrainingQueries, own_kind: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of queries, and the rows of the pool that they search: all, or the kinds of their positives."""
    pairs, pool = queries.pairs, queries.pairs.pool
    kinds = pool.kinds if own_kind else np.zeros(len(pool), np.int64)  # (N,)
    owners, answers = pairs.answers_of(queries.rows)
    kinds_of = np.split(kinds[answers], np.flatnonzero(np.diff(owners)) + 1)  # of each query's positives
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for query, of_query in enumerate(kinds_of):
        members[tuple(sorted(set(of_query.tolist())))].append(query)
    for wanted, together in members.items():
        candidates = np.flatnonzero(np.isin(kinds, wanted))
        for start in range(0, len(together), QUERIES_TOGETHER):
            yield np.array(together[start : start + QUERIES_TOGETHER]), candidates
