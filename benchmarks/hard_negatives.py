"""What mining hard negatives takes beside the model, of time and memory, and what it would take of all of M-BEIR.

python benchmarks/hard_negatives.py --queries 2000 8000 32000

Texts in M-BEIR's files, 5 candidates a query, random embeddings on disk. Each size has a process of its own: search,
rules and file, and what a training reads. The search grows with queries times candidates, and a GPU does it: its time
is told apart. All else grows with the queries. The embeddings are small; of hidden size 3584 a block of 16,384 queries
and their positives is 0.5 GiB more.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from search import make_pool
from suite_memory import status

from lamra.datasets.columns import read_columns
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows
from lamra.eval import mining
from lamra.eval.cache.manifest import VERSION
from lamra.eval.mining import Embedded, TrainingQueries, mined_file, mined_pieces
from lamra.eval.negatives import Rules

ALL = 1_100_000  # M-BEIR's training queries
# What does not grow with the queries: memory of a block and of a piece of them. The search grows with their square.
CONSTANT = ("mine_gib", "rules_gib", "draw_ms", "search_seconds")


def write_files(folder: Path, queries: int, candidates: int) -> None:
    """A text a row; query n looks for candidate n, which is in the list of its positives with one other in three."""
    with open(folder / "pool.jsonl", "w") as file:
        for row in range(candidates):
            candidate = {"did": f"9:{row}", "txt": f"A text about {row}.", "modality": "text"}
            file.write(json.dumps(candidate) + "\n")
    with open(folder / "queries.jsonl", "w") as file:
        for row in range(queries):
            right = [f"9:{row}", f"9:{candidates - 1 - row}"][: 2 if row % 3 == 0 else 1]
            query = {"qid": f"9:{row}", "query_txt": f"What of {row}?", "query_modality": "text"}
            file.write(json.dumps(query | {"pos_cand_list": right}) + "\n")
    (folder / "instructions.tsv").write_text("\t".join(Instructions.COLUMNS) + "\ntext\ttext\tA\t9\tShow it.\n")


def open_files(folder: Path, **negatives: Any) -> MBEIRPairs:
    queries, pool = (
        Rows(folder / f"{name}.jsonl", folder, kind) for name, kind in (("queries", QUERY), ("pool", CANDIDATE))
    )
    return MBEIRPairs(queries, pool, Instructions(folder / "instructions.tsv"), **negatives)


class Stages:
    """CPU seconds and GiB of the stages of a run. The peak is set back before each."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self.begin()

    def begin(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self.before, self.since = status("VmRSS"), time.process_time()

    def end(self, name: str) -> None:
        self.found[f"{name}_seconds"] = time.process_time() - self.since
        self.found[f"{name}_gib"] = status("VmHWM") - self.before
        self.begin()


def measure(folder: Path, queries: int, dimension: int, memory: float, connection: Connection) -> None:
    write_files(folder, queries, 5 * queries)
    (folder / "gallery").mkdir()
    gallery = make_pool(folder / "gallery", 5 * queries, dimension)
    # A query lies near its first positive.
    noise = np.random.default_rng(1).standard_normal((queries, dimension), np.float32)
    embeddings = gallery[:queries] + 0.5 * noise / dimension**0.5
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    open_files(folder)  # which writes the indexes
    searched, search = [0.0], mining.search

    def timed(*args: Any) -> Any:
        since = time.process_time()
        found = search(*args)
        searched[0] += time.process_time() - since
        return found

    mining.search = timed  # type: ignore[assignment]
    stages = Stages()
    training = TrainingQueries(open_files(folder))
    stages.end("open")
    of = Embedded(training, embeddings, gallery, {"version": VERSION})
    how: dict[str, Any] = dict(own_kind=True, search_depth=None, search_memory=memory, device="cpu")
    files = mined_pieces(of, folder / "mined", top=100, positives=True, **how)
    stages.end("mine")
    counts, rules = Counter[int](), Rules(0, 100, 10, below_share=0.95, margin=0.01)
    with mined_file(folder / "negatives.arrow", training) as write:
        for file in files:
            columns = read_columns(file)
            (piece,) = columns.pieces
            kept, _ = rules.apply(piece, columns.about["passed"])
            counts.update(np.bincount(piece.owners[kept], minlength=len(piece.queries)).tolist())
            write(piece.only(kept))
    stages.end("rules")
    pairs = open_files(folder, hard_negatives=4, mined=[folder / "negatives.arrow"])
    stages.end("training")
    assert pairs.mined is not None and pairs.mined.candidates == sum(n * many for n, many in counts.items()) > 0
    since = time.process_time()
    for row in range(1000):
        pairs[row % queries]
    result = {"queries": queries, "search_seconds": searched[0], **stages.found, "lines": pairs.mined.candidates}
    connection.send(result | {"draw_ms": time.process_time() - since})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, nargs="+", default=[2000, 8000, 32000])
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--search_memory", type=float, default=0.25, help="GiB")
    args = parser.parse_args()

    context, found = multiprocessing.get_context("fork"), []
    for queries in args.queries:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = multiprocessing.Pipe()
            child = context.Process(
                target=measure, args=(Path(folder), queries, args.dimension, args.search_memory, theirs)
            )
            child.start()
            child.join()
            if child.exitcode != 0:
                raise SystemExit(f"mining for {queries} queries ended with status {child.exitcode}")
            found.append(ours.recv())
            print(f"{queries:,} queries are done", flush=True)
    names = [name for name in found[0] if name != "queries"]
    for of_size in found:
        of_size["mine_seconds"] -= of_size["search_seconds"]
    # From the two largest sizes, so that what every run has is not multiplied.
    before, last = found[-2:] if len(found) > 1 else [dict.fromkeys(found[0], 0), found[0]]
    slope = {name: (last[name] - before[name]) / (last["queries"] - before["queries"]) for name in names}
    whole = {name: last[name] + slope[name] * (ALL - last["queries"]) for name in names if name not in CONSTANT}
    print(f"{'':<18}" + "".join(f"{of_size['queries']:>12,}" for of_size in found) + f"{ALL:>16,}")
    for name in names:
        estimate = f"{whole[name]:>16,.2f}" if name in whole else f"{'-':>16}"
        print(f"{name:<18}" + "".join(f"{of_size[name]:>12,.2f}" for of_size in found) + estimate)
    print(json.dumps({"sizes": found, f"at_{ALL}": whole}))


if __name__ == "__main__":
    main()
