"""What a large ranking takes beside the model: to mine, to train from, to rerank. CPU seconds, memory, counters.

python benchmarks/rankings.py --queries 100000 --top 100 --reranked 190000

Texts in M-BEIR's files, 5 candidates a query. The search is left out: each query "finds" its own candidate first and
others in one order. Each stage has a process of its own, from the same program that has imported everything. Memory is
what a process has for itself: mapped files belong to all processes of a machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hard_negatives import open_files, write_files
from suite_memory import status

from lamra.datasets.columns import Columns, Piece, read_columns
from lamra.datasets.rankings import read_ranking, write_lines, write_ranking
from lamra.datasets.rerank import RerankExamples
from lamra.datasets.tasks import RetrievalTask
from lamra.eval import mining
from lamra.eval.cache.manifest import VERSION
from lamra.eval.metrics import measures
from lamra.eval.mining import Embedded, TrainingQueries
from lamra.eval.rerank.answers import Answers
from lamra.eval.rerank.fusion import rerank

DEPTH = 50  # of the reranked ranking


class Found(dict):
    """What a stage took, by name."""

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """CPU seconds, and by how many GiB private memory grew at the most, looked at 100 times a second."""
        before, peak, over = status("RssAnon"), [0.0], threading.Event()

        def watch() -> None:
            while not over.wait(0.01):
                peak.append(status("RssAnon"))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        since = time.process_time()
        yield
        self[f"{name}_seconds"] = time.process_time() - since
        peak.append(status("RssAnon"))
        over.set()
        watcher.join()
        self[f"{name}_gib"] = max(peak) - before


def counted(module: Any, name: str, calls: list[int]) -> None:
    """Count what is called from now on, in calls[0]."""
    function = getattr(module, name)

    def count(*args: Any, **named: Any) -> Any:
        calls[0] += 1
        return function(*args, **named)

    setattr(module, name, count)


def found_without_search(query: Any, gallery: Any, depth: int, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of eval.search.search: of each query its own candidate, then the others `depth` steps apart."""
    step = max(len(gallery) // depth, 1)
    columns = (np.searchsorted(gallery.rows, query.rows)[:, None] + step * np.arange(depth)) % len(gallery)
    scores = np.broadcast_to(np.linspace(0.9, 0.1, depth, dtype=np.float32), columns.shape)
    return torch.from_numpy(scores.copy()), torch.from_numpy(columns)


def mine(folder: Path, top: int, found: Found) -> None:
    """Pieces and mined.arrow, as mine_rerank.py writes them."""
    counted(os, "pread", reads := [0])
    queries = TrainingQueries(open_files(folder))
    vectors = np.zeros((len(queries.pairs.pool), 64), np.float32)  # nobody looks at them
    of = Embedded(queries, vectors[: len(queries)], vectors, {"version": VERSION})
    mining.search = found_without_search  # type: ignore[assignment]
    reads[0] = 0
    with found.measured("mine"):
        how: dict[str, Any] = dict(own_kind=True, search_depth=None, search_memory=0.25, device="cpu")
        files = mining.mined_pieces(of, folder / "pieces", top=top, **how)
        with mining.mined_file(folder / "mined.arrow", queries) as write:
            for file in files:
                for piece in read_columns(file).pieces:
                    write(piece)
    mined = read_columns(folder / "mined.arrow")
    found |= {"lines": mined.lines, "bytes_a_line": (folder / "mined.arrow").stat().st_size / mined.lines}
    found["reads_a_query"] = reads[0] / len(queries)


def to_lines(folder: Path, _: int, found: Found) -> None:
    """What --jsonl adds."""
    pairs = open_files(folder)
    with found.measured("lines"):
        write_lines(folder / "mined.jsonl", pairs.queries, pairs.pool, read_columns(folder / "mined.arrow"))


def examples(source: str, name: str) -> Callable[[Path, int, Found], None]:
    """A start of LamRA-Rank's training: its files and the examples of `source`."""

    def start(folder: Path, _: int, found: Found) -> None:
        counted(json, "loads", parsed := [0])
        since = time.perf_counter()
        with found.measured(name):
            read = RerankExamples(open_files(folder), [folder / source])
        found |= {f"{name}_wall_seconds": time.perf_counter() - since, f"{name}_parsed": parsed[0]}
        drawn = [read[i] for i in range(0, len(read), max(len(read) // 1000, 1))]
        found["draws"] = sha256(repr(drawn).encode()).hexdigest()[:8]

    return start


def make_ranking(folder: Path, queries: int, _: Found) -> None:
    """A ranking of `queries` queries and answers to it, as files."""
    rng, pairs = np.random.default_rng(0), open_files(folder)
    others = rng.permutation(np.arange(1, len(pairs.pool)))[: DEPTH - 1]
    candidates = (np.arange(queries)[:, None] + np.append(0, others)) % len(pairs.pool)  # the right one first
    scores = np.broadcast_to(np.linspace(0.9, 0.1, DEPTH), candidates.shape).ravel()
    piece = Piece(np.arange(queries), DEPTH * np.arange(queries + 1), candidates.astype(np.int32).ravel(), scores)
    write_ranking(folder / "ranking.jsonl", pairs.queries, pairs.pool, Columns([piece]))
    (folder / "answers").mkdir()
    with open(folder / "answers/0.jsonl", "w") as file:
        file.writelines(
            json.dumps({"row": row, "answer": rng.random(DEPTH, np.float32).tolist()}) + "\n" for row in range(queries)
        )


def reranked(folder: Path, queries: int, found: Found) -> None:
    """The first of what eval_rerank.py does, and the last: all but to ask."""
    pairs = open_files(folder)
    task = RetrievalTask("task", pairs.queries, pairs.pool, [[row] for row in range(len(pairs))])
    with found.measured("rerank"):
        ranking = read_ranking(folder / "ranking.arrow", task.queries, task.gallery)
        answers = Answers.read(folder / "answers")
        before = measures(task, ranking)
        after = rerank(ranking, answers, "pointwise", 1.0)
        found |= {"recall_before": before["recall@1"], "recall_after": measures(task, after)["recall@1"]}
        write_ranking(folder / "after.jsonl", task.queries, task.gallery, after)
    found["reranked_lines"] = after.lines


def read_lines(folder: Path, _: int, found: Found) -> None:
    """The same ranking where it is there as lines alone."""
    pairs = open_files(folder)
    with found.measured("lines_to_rerank"):
        assert len(read_ranking(folder / "ranking.jsonl", pairs.queries, pairs.pool)) == len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--reranked", type=int, default=20_000, help="queries of the reranked ranking")
    args = parser.parse_args()

    context, found = multiprocessing.get_context("fork"), Found(queries=args.queries, top=args.top)

    def apart(stage: Callable[[Path, int, Found], None], folder: Path, size: int) -> None:
        def call() -> None:
            stage(folder, size, of_stage := Found())
            theirs.send(dict(of_stage))

        ours, theirs = multiprocessing.Pipe()
        child = context.Process(target=call)
        child.start()
        child.join()
        if child.exitcode != 0:
            raise SystemExit(f"{stage.__name__} ended with status {child.exitcode}")
        for name, value in ours.recv().items():
            assert found.setdefault(name, value) == value or name != "draws", "other draws"
            found[name] = value
            print(f"{name:<32}{value:>16,.3f}" if isinstance(value, float) else f"{name:<32}{value:>16}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "mined")
        folder.mkdir()
        write_files(folder, args.queries, 5 * args.queries)
        open_files(folder)  # which writes the indexes
        for stage in (mine, to_lines, examples("mined.arrow", "of_columns"), examples("mined.jsonl", "of_lines_once")):
            apart(stage, folder, args.top)
        apart(examples("mined.jsonl", "of_lines_again"), folder, args.top)
        folder = Path(name, "reranked")
        folder.mkdir()
        write_files(folder, args.reranked, 5 * args.reranked)
        for stage in (make_ranking, reranked, read_lines):
            apart(stage, folder, args.reranked)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
