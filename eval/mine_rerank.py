"""Mine what a retriever confuses: the hard candidates that LamRA-Rank learns from. Started from lamra_rank/mine.sh.

Writes <output_dir>/mined.arrow, a ranking in columns, and with --jsonl the same as mined.jsonl, lines {qid, did, score,
rank}, and as upstream's mined.json, {qid: {gt_docs, top100_docs}}. Training reads each, and several of them together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lamra.common.cli import parse, run
from lamra.common.files import whole_file
from lamra.common.flags import flag, require
from lamra.common.lock import folder_lock
from lamra.common.processes import is_first_process
from lamra.datasets.columns import SUFFIX, Columns, read_columns
from lamra.datasets.rankings import write_lines
from lamra.eval.flags import output_folder
from lamra.eval.reporting.results import write_json
from lamra.eval.training_files import MiningFlags

if TYPE_CHECKING:
    from lamra.datasets.mbeir.pairs import MBEIRPairs


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
    """Encode, search, and write mined.arrow, and on request mined.jsonl and mined.json; returns their folder."""
    from lamra.eval.inference import start  # torch and transformers, which --help does not wait for
    from lamra.eval.mining import embedded, mined_file, mined_pieces

    state, folder = start(args), output_folder(args, "mined")
    with folder_lock(folder):
        of = embedded(args, folder)
        search = {name: getattr(args, name) for name in ("own_kind", "search_depth", "search_memory")}
        files = mined_pieces(of, folder / "pieces", top=args.top, device=state.device, anew=True, **search)
        if is_first_process():
            write_json(folder / "made_by.json", of.made_by)
            path, pairs = folder / f"mined{SUFFIX}", of.queries.pairs
            with mined_file(path, of.queries) as write:
                for file in files:
                    for piece in read_columns(file).require(of.queries, pairs.pool).pieces:
                        write(piece.take(np.flatnonzero(piece.counts)))
            found = read_columns(path)
            if args.jsonl:
                write_as_lines(folder, pairs, found)
            written = f"{path}, mined.jsonl and mined.json" if args.jsonl else path
            print(f"{found.lines} candidates of {len(found)} of {len(of.queries)} queries in {written}")
    return folder


def write_as_lines(folder: Path, pairs: MBEIRPairs, found: Columns) -> None:
    """mined.jsonl and mined.json, in the order of the queries' rows."""
    order = np.argsort(found.queries)
    write_lines(folder / "mined.jsonl", pairs.queries, pairs.pool, found.of_queries(order))
    with whole_file(folder / "mined.json") as file:  # an object of its own for each query: 1.3e8 ids are no dict
        for number, (row, candidates, _) in enumerate(found.of_queries(order)):
            docs = {"gt_docs": pairs.answers(row), "top100_docs": candidates}
            ids = {name: list(map(pairs.pool.id, rows)) for name, rows in docs.items()}
            file.write(f"{', ' if number else '{'}{json.dumps(pairs.queries.id(row))}: {json.dumps(ids)}")
        file.write("}\n" if len(found) else "{}\n")


if __name__ == "__main__":
    run(main)
