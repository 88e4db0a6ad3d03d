"""Mine what a retriever confuses: the hard candidates that LamRA-Rank learns from. Started from lamra_rank/mine.sh.

Writes <output_dir>/mined.jsonl, a ranking {qid, did, score, rank}, and the same as upstream's mined.json,
{qid: {gt_docs, top100_docs}}. Training reads either, and several of them together.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from lamra.common.cli import note, parse, require, run
from lamra.common.files import sha256, whole_file
from lamra.common.lock import folder_lock
from lamra.common.processes import start_processes
from lamra.datasets.items import Item
from lamra.datasets.mbeir.layout import DATA_PATH, INSTRUCTIONS, TRAIN_POOL, TRAIN_QUERIES
from lamra.datasets.mbeir.pairs import MBEIRPairs, open_pairs
from lamra.datasets.mbeir.rows import MODALITIES, dataset_of
from lamra.eval.eval_mbeir import Encoder
from lamra.eval.inference import RetrieverArguments, load_retriever
from lamra.eval.reporting.files import write_provenance, write_ranking
from lamra.eval.search import Blocks, search
from lamra.eval.shards import Shards
from lamra.eval.zeroshot import output_folder

QUERIES_TOGETHER = 16_384  # of a search: other processes wait while the first looks which candidates are usable


@dataclass
class MineArguments(RetrieverArguments):
    data_path: str = field(default=DATA_PATH, metadata={"help": "M-BEIR's folder; the paths below are inside it"})
    queries: str = field(default=TRAIN_QUERIES, metadata={"help": "whose candidates to mine"})
    pool: str = field(default=TRAIN_POOL, metadata={"help": "candidates"})
    instructions: str = field(default=INSTRUCTIONS, metadata={"help": "what to retrieve"})
    seed: int = field(default=0, metadata={"help": "draws each query's instruction"})
    top: int = field(default=100, metadata={"help": "candidates of each query"})
    own_kind: bool = field(
        default=True, metadata={"help": "of the positives' data set and modality only, as from a local pool"}
    )
    search_depth: int | None = field(
        default=None, metadata={"help": "candidates to choose from; default: as many as it takes to find top"}
    )
    output_dir: str | None = field(default=None, metadata={"help": "default: results/<model>/mined"})
    shard_size: int = field(default=100_000, metadata={"help": "items encoded between two writes"})
    search_memory: float = field(default=4.0, metadata={"help": "GiB that a process's search may use"})

    def __post_init__(self):
        super().__post_init__()
        require(self.top > 0, "top", self.top, "1 or more")
        depth = self.search_depth
        require(depth is None or depth >= self.top, "search_depth", depth, f"--top {self.top} or more")
        require(self.shard_size > 0, "shard_size", self.shard_size, "1 or more")


class TrainingQueries(Sequence[Item]):
    """The queries of training pairs, each once, with its instruction of the first epoch.

    Attributes:
        rows: the row of each query, the first where it is repeated.
    """

    def __init__(self, pairs: MBEIRPairs):
        self.pairs = pairs
        self.rows = np.unique(pairs.queries.rows_of(pairs.queries.keys))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, query: int) -> Item:
        return self.pairs[int(self.rows[query])].query


class RowsOf:
    """Some rows of (N, D) embeddings, in ascending order, to be sliced as if there were no others."""

    READ_TOGETHER = 4096  # rows of the embeddings

    def __init__(self, embeddings: Shards, rows: np.ndarray):
        self.embeddings, self.rows, self.shape = embeddings, rows, (len(rows), embeddings.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray:
        rows = self.rows[part]
        out = np.empty((len(rows), self.shape[1]), np.float32)
        start = 0
        while start < len(rows):
            stop = int(np.searchsorted(rows, rows[start] + self.READ_TOGETHER))
            block = self.embeddings[rows[start] : rows[stop - 1] + 1]
            out[start:stop] = block[rows[start:stop] - rows[start]]
            start = stop
        return out


def main() -> None:
    (args,) = parse(MineArguments)
    mine_files(args)


def mine_files(args: MineArguments) -> Path:
    """Encode, search, and write mined.jsonl and mined.json; returns their folder."""
    state = start_processes()
    with folder_lock(output_folder(args, "mined")):
        return _mine_files(args, state)


def _mine_files(args: MineArguments, state: PartialState) -> Path:
    with state.main_process_first():  # it writes the indexes
        pairs = open_pairs(args.data_path, args.queries, args.pool, args.instructions, seed=args.seed, tell=note)
    encoder = Encoder(args, load_retriever(args), "mined")
    gallery = encoder.candidates(pairs.pool)
    drawn_by = {"instructions": sha256(pairs.instructions.path), "seed": args.seed}
    if pairs.notes:  # then the pool decides which queries there are, and between which positives they draw
        drawn_by["pool"] = sha256(pairs.pool.path)
    queries = TrainingQueries(pairs)
    embeddings = encoder.encode(queries, pairs.queries.path, drawn_by)
    found = mine(pairs, queries, embeddings, gallery, args, state)
    if state.is_main_process:
        write_provenance(encoder.folder, {**encoder.made_by, "files": encoder.files, **drawn_by})
        write(encoder.folder, pairs, queries, found)
    return encoder.folder


def mine(
    pairs: MBEIRPairs,
    queries: TrainingQueries,
    embeddings: Shards,
    gallery: Shards,
    args: MineArguments,
    state: PartialState,
) -> dict[int, tuple[list[int], list[float]]]:
    """For each query, by its number, the first `top` usable rows of the pool and their scores; on the first process.

    With own_kind the queries of a kind look at that kind's candidates only, so that the depth does not depend on what
    else the pool holds. Positives and what looks like them are not usable: where they leave too few, these queries look
    twice as deep, to the end if need be. With search_depth they do not.
    """
    found: dict[int, tuple[list[int], list[float]]] = {}
    for members, candidates in searched_together(pairs, queries, args.own_kind):
        depth = args.search_depth or 2 * args.top
        while len(members):
            blocks = Blocks.within(args.search_memory * 2**30, gallery.shape[1], depth)
            result = search(RowsOf(embeddings, members), RowsOf(gallery, candidates), depth, blocks, state.device)
            lacking = []
            if state.is_main_process:
                for query, scores, columns in zip(members.tolist(), *(table.tolist() for table in result)):
                    rows = candidates[columns].tolist()
                    score_of = dict(zip(rows, scores))
                    wrong = usable(pairs, pairs.answers(int(queries.rows[query])), rows)
                    kept = [(row, score_of[row]) for row in islice(wrong, args.top)]  # it reads no more rows than that
                    found[query] = [row for row, _ in kept], [score for _, score in kept]
                    if len(kept) < args.top and depth < len(candidates) and not args.search_depth:
                        lacking.append(query)
            members, depth = np.array(broadcast_object_list([lacking])[0], dtype=np.int64), 2 * depth
    return found


def searched_together(
    pairs: MBEIRPairs, queries: TrainingQueries, own_kind: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of queries, and the pool's rows that they choose from: all, or those of the kinds of their positives."""
    pool = pairs.pool
    if not own_kind:
        yield from _in_parts(np.arange(len(queries)), np.arange(len(pool)))
        return
    kinds = dataset_of(pool.keys) * len(MODALITIES) + pool.modalities  # (N,)
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for query, row in enumerate(queries.rows):
        members[tuple(np.unique(kinds[pairs.answers(int(row))]).tolist())].append(query)
    for wanted, together in members.items():
        yield from _in_parts(np.array(together), np.flatnonzero(np.isin(kinds, wanted)))


def _in_parts(queries: np.ndarray, candidates: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(queries), QUERIES_TOGETHER):
        yield queries[start : start + QUERIES_TOGETHER], candidates


def usable(pairs: MBEIRPairs, answers: list[int], candidates: list[int]) -> Iterator[int]:
    """Those candidates of a query that are wrong, in order: no answer, and none that looks or reads like one."""
    right = [pairs.pool[row] for row in answers]
    others = (row for row in candidates if row not in answers)
    return (row for row in others if not any(same(pairs.pool[row], item) for item in right))


def same(a: Item, b: Item) -> bool:
    """Whether two candidates have the same text or the same picture, or both nothing at all."""
    if a.text and a.text == b.text or not (a.text or a.images or b.text or b.images):
        return True
    return any(_same_file(one, other) for one in a.images for other in b.images)


def _same_file(a: Path, b: Path) -> bool:
    return a == b or (_size(a) == _size(b) and sha256(a) == sha256(b))


@lru_cache(maxsize=1_000_000)
def _size(path: Path) -> int:
    return path.stat().st_size


def write(
    folder: Path, pairs: MBEIRPairs, queries: TrainingQueries, found: dict[int, tuple[list[int], list[float]]]
) -> None:
    ids = pairs.pool.id
    rows = [
        (pairs.queries.id(row), row, [ids(candidate) for candidate in found[query][0]], found[query][1])
        for query, row in enumerate(queries.rows.tolist())
        if found[query][0]
    ]
    write_ranking(folder / "mined.jsonl", ((qid, dids, scores) for qid, _, dids, scores in rows))
    upstream = {
        qid: {"gt_docs": [ids(answer) for answer in pairs.answers(row)], "top100_docs": dids}
        for qid, row, dids, _ in rows
    }
    with whole_file(folder / "mined.json") as file:
        file.write(json.dumps(upstream) + "\n")
    count = sum(len(dids) for _, _, dids, _ in rows)
    print(f"{count} candidates of {len(rows)} of {len(queries)} queries in {folder}/mined.jsonl and mined.json")


if __name__ == "__main__":
    run(main)
