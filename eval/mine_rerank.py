"""Mine what a retriever confuses: the hard candidates that LamRA-Rank learns from. Started from lamra_rank/mine.sh.

Writes <output_dir>/mined.jsonl, a ranking {qid, did, score, rank}, and the same as upstream's mined.json,
{qid: {gt_docs, top100_docs}}. Training reads either, and several of them together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from lamra.datasets.items import Item
from lamra.datasets.mbeir import MBEIRPairs, dataset_of
from lamra.eval.eval_mbeir import Encoder
from lamra.eval.report import write_ranking
from lamra.eval.retriever import RetrieverArguments, load_retriever
from lamra.eval.search import Blocks, search
from lamra.train.arguments import parse, require
from lamra.train.checkpoints import sha256
from lamra.train.entrypoint import run
from lamra.train.processes import start_processes
from lamra.train.train_mbeir import MBEIRDataArguments, load_pairs


@dataclass
class MineArguments(RetrieverArguments):
    data_path: str = field(default="data/M-BEIR", metadata={"help": "M-BEIR's folder; the paths below are inside it"})
    queries: str = field(default=MBEIRDataArguments.queries, metadata={"help": "whose candidates to mine"})
    pool: str = field(default=MBEIRDataArguments.pool, metadata={"help": "candidates"})
    instructions: str = field(default=MBEIRDataArguments.instructions, metadata={"help": "what to retrieve"})
    seed: int = field(default=0, metadata={"help": "draws each query's instruction"})
    top: int = field(default=100, metadata={"help": "candidates of each query"})
    own_kind: bool = field(
        default=True, metadata={"help": "of the positives' data set and modality only, as from a local pool"}
    )
    search_depth: int | None = field(default=None, metadata={"help": "candidates to choose from; default: 2 x top"})
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
    """The queries of training pairs, each with its instruction of the first epoch."""

    def __init__(self, pairs: MBEIRPairs):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> Item:
        return self.pairs[row].query


def main() -> None:
    (args,) = parse(MineArguments)
    state = start_processes()
    with state.main_process_first():  # it writes the indexes
        pairs = load_pairs(args, args.queries, args.pool, args.seed)
    encoder = Encoder(args, load_retriever(args), "mined")
    gallery = encoder.candidates(pairs.pool)
    drawn_by = {"instructions": sha256(pairs.instructions.path), "seed": args.seed}
    queries = encoder.encode(TrainingQueries(pairs), pairs.queries.path, drawn_by)
    depth = args.search_depth or 2 * args.top
    blocks = Blocks.within(args.search_memory * 2**30, gallery.shape[1], depth)
    scores, found = search(queries, gallery, depth, blocks, state.device)  # (Q, depth) each
    if state.is_main_process:
        write(encoder.folder, pairs, mined(pairs, scores, found, args))


def mined(
    pairs: MBEIRPairs, scores: torch.Tensor, found: torch.Tensor, args: MineArguments
) -> Iterator[tuple[int, list[int], list[float]]]:
    """Row of each query with usable candidates, their rows in the pool, and their scores."""
    for row, (score, candidates) in enumerate(zip(scores.tolist(), found.tolist())):
        wrong = usable(pairs, row, candidates, args.own_kind)
        kept = [(place, one) for one, place in zip(score, candidates) if place in wrong][: args.top]
        if kept:
            yield row, [place for place, _ in kept], [one for _, one in kept]


def usable(pairs: MBEIRPairs, row: int, candidates: list[int], own_kind: bool) -> set[int]:
    """Those candidates of a query that are wrong: no positive, and none that looks or reads like one."""
    positives, pool = pairs.positives(row), pairs.pool
    kinds = {_kind(pairs, positive) for positive in positives}
    right = [pool[positive] for positive in positives]
    others = [place for place in candidates if place not in positives]
    others = [place for place in others if not own_kind or _kind(pairs, place) in kinds]
    return {place for place in others if not any(same(pool[place], one) for one in right)}


def _kind(pairs: MBEIRPairs, place: int) -> tuple[int, str]:
    return int(dataset_of(pairs.pool.keys[place])), pairs.pool.modality(place)


def same(a: Item, b: Item) -> bool:
    """Whether two candidates have the same text or the same picture."""
    if a.text and a.text == b.text:
        return True
    return any(_same_file(one, other) for one in a.images for other in b.images)


def _same_file(a: Path, b: Path) -> bool:
    return a == b or (_size(a) == _size(b) and sha256(a) == sha256(b))


@lru_cache(maxsize=1_000_000)
def _size(path: Path) -> int:
    return path.stat().st_size


def write(folder: Path, pairs: MBEIRPairs, rows: Iterator[tuple[int, list[int], list[float]]]) -> None:
    ids = pairs.pool.id
    rows = [(pairs.queries.id(row), row, [ids(place) for place in places], scores) for row, places, scores in rows]
    write_ranking(folder / "mined.jsonl", ((qid, dids, scores) for qid, _, dids, scores in rows))
    upstream = {
        qid: {"gt_docs": [ids(place) for place in pairs.positives(row)], "top100_docs": dids}
        for qid, row, dids, _ in rows
    }
    (folder / "mined.json").write_text(json.dumps(upstream) + "\n")
    count = sum(len(dids) for _, _, dids, _ in rows)
    print(f"{count} candidates of {len(rows)} of {len(pairs)} queries in {folder}/mined.jsonl and mined.json")


if __name__ == "__main__":
    run(main)
