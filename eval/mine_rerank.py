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
from lamra.common.files import whole_file
from lamra.common.flags import flag, require
from lamra.common.lock import folder_lock
from lamra.common.processes import is_first_process
from lamra.datasets.rankings import Ranking, write_ranking
from lamra.eval.flags import output_folder
from lamra.eval.reporting.results import write_json
from lamra.eval.training_files import MiningFlags

if TYPE_CHECKING:
    from lamra.eval.mining import TrainingQueries


@dataclass
class MineArguments(MiningFlags):
    top: int = flag(100, "candidates of each query", low=1)

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
    from lamra.eval.inference import start  # torch and transformers, which --help does not wait for
    from lamra.eval.mining import embedded, mine

    state, folder = start(args), output_folder(args, "mined")
    with folder_lock(folder):
        queries, *embeddings, made_by = embedded(args, folder)
        found = mine(
            queries,
            *embeddings,
            top=args.top,
            own_kind=args.own_kind,
            search_depth=args.search_depth,
            search_memory=args.search_memory,
            device=state.device,
        )
        if is_first_process():
            write_json(folder / "made_by.json", made_by)
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
