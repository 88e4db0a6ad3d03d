"""Mine what a retriever confuses: the hard candidates that LamRA-Rank learns from. Started from lamra_rank/mine.sh.

Writes <output_dir>/mined.jsonl, a ranking {qid, did, score, rank}, and the same as upstream's mined.json,
{qid: {gt_docs, top100_docs}}. Training reads either, and several of them together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamra.common.cli import parse, run
from lamra.common.files import sha256, whole_file
from lamra.common.flags import FILE, FOLDER, LARGEST_SEED, OUT_FOLDER, flag, require
from lamra.common.lock import folder_lock
from lamra.common.processes import is_first_process
from lamra.datasets.mbeir.layout import DATA_PATH, GET_MBEIR, INSTRUCTIONS, TRAIN_POOL, TRAIN_QUERIES
from lamra.datasets.rankings import Ranking, write_ranking
from lamra.eval.flags import GuestArguments, output_folder
from lamra.eval.reporting.results import write_json

if TYPE_CHECKING:
    from lamra.eval.mining import TrainingQueries


@dataclass
class MineArguments(GuestArguments):
    data_path: str = flag(DATA_PATH, "M-BEIR's folder; the paths below are inside it", path=FOLDER, source=GET_MBEIR)
    queries: str = flag(TRAIN_QUERIES, "whose candidates to mine", path=FILE, inside="data_path", source=GET_MBEIR)
    pool: str = flag(TRAIN_POOL, "candidates", path=FILE, inside="data_path", source=GET_MBEIR)
    instructions: str = flag(INSTRUCTIONS, "what to retrieve", path=FILE, inside="data_path", source=GET_MBEIR)
    seed: int = flag(0, "draws each query's instruction", low=0, high=LARGEST_SEED)
    top: int = flag(100, "candidates of each query", low=1)
    own_kind: bool = flag(True, "of the positives' data set and modality only, as from a local pool")
    search_depth: int | None = flag(None, "candidates to choose from; default: as many as it takes to find top", low=1)
    output_dir: str | None = flag(None, "default: results/<model>/mined", path=OUT_FOLDER)
    shard_size: int = flag(100_000, "items encoded between two writes", low=1)
    search_memory: float = flag(4.0, "GiB that a process's search may use", above=0)

    def __post_init__(self):
        super().__post_init__()
        depth = self.search_depth
        require(depth is None or depth >= self.top, "search_depth", depth, f"--top {self.top} or more")

    def check_paths(self) -> None:
        super().check_paths()
        output_folder(self, "mined")


def main() -> None:
    mine_files(*parse(MineArguments))


def mine_files(args: MineArguments) -> Path:
    """Encode, search, and write mined.jsonl and mined.json; returns their folder."""
    from lamra.datasets.mbeir.pairs import open_pairs  # torch and transformers, which --help does not wait for
    from lamra.eval.cache.embeddings import EmbeddingsCache
    from lamra.eval.inference import load_retriever, start
    from lamra.eval.mining import TrainingQueries, mine

    state, folder = start(args), output_folder(args, "mined")
    with folder_lock(folder):
        with state.main_process_first():  # it writes the indexes
            pairs = open_pairs(args.data_path, args.queries, args.pool, args.instructions, seed=args.seed)
        retriever = load_retriever(args)
        provenance = retriever.provenance(args)
        drawn_by: dict[str, str | int] = {"instructions": sha256(pairs.instructions.path), "seed": args.seed}
        if pairs.notes:  # then the pool decides which queries there are, and between which positives they draw
            drawn_by["pool"] = sha256(pairs.pool.path)
        queries = TrainingQueries(pairs, drawn_by)
        cache = EmbeddingsCache(folder / "embeddings", retriever, provenance, args.shard_size)
        gallery, embeddings = cache.embed(pairs.pool), cache.embed(queries)
        found = mine(
            queries,
            embeddings,
            gallery,
            top=args.top,
            own_kind=args.own_kind,
            search_depth=args.search_depth,
            search_memory=args.search_memory,
            device=state.device,
        )
        if is_first_process():
            write_json(folder / "made_by.json", {**provenance, "files": cache.files, **drawn_by})
            write(folder, queries, found)
    return folder


def write(folder: Path, queries: TrainingQueries, found: Ranking) -> None:
    """mined.jsonl and mined.json."""
    pairs, found = queries.pairs, [ranked for ranked in found if ranked.candidates]
    write_ranking(folder / "mined.jsonl", queries, pairs.pool, found)
    upstream = {
        queries.id(query): {
            "gt_docs": [pairs.pool.id(answer) for answer in pairs.answers(int(queries.rows[query]))],
            "top100_docs": [pairs.pool.id(row) for row in candidates],
        }
        for query, candidates, _ in found
    }
    with whole_file(folder / "mined.json") as file:
        file.write(json.dumps(upstream) + "\n")
    count = sum(len(ranked.candidates) for ranked in found)
    print(f"{count} candidates of {len(found)} of {len(queries)} queries in {folder}/mined.jsonl and mined.json")


if __name__ == "__main__":
    run(main)
