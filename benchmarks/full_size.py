"""What everything around the model takes at M-BEIR's size: files of its rows, random vectors, at growing scales.

    python benchmarks/full_size.py --scales 0.01 0.1

Each size has a process of its own. CPU seconds, memory above what the process held before, bytes on disk; how they grow
from one size to the next (1: with the rows; a search grows with queries times candidates), and what the whole needs if
it goes on so. Vectors are small (--dimension): the searches' seconds are told apart, a GPU does them; with --no-search
each query finds some rows, spread over the pool, at no cost.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hard_negatives import Stages
from mbeir_sizes import SIZES, SMALL, TRAIN_POOL_ROWS, UP_TRAIN_ROWS
from torch import Tensor

from lamra.datasets.columns import read_columns
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import INSTRUCTIONS, TASKS, TRAIN_POOL, TRAIN_QUERIES, Task, global_pool
from lamra.datasets.mbeir.pairs import open_pairs
from lamra.datasets.mbeir.tasks import open_tasks
from lamra.datasets.rankings import write_by_query, write_ranking
from lamra.datasets.rerank import RerankExamples
from lamra.datasets.tasks import Items
from lamra.eval import evaluate, mining, stored
from lamra.eval.cache.manifest import VERSION
from lamra.eval.metrics import measures_by_query
from lamra.eval.mining import TrainingQueries
from lamra.eval.search import search

PICTURES = 1000  # files, each of another length, that stand for all pictures
POOL_ROWS = sum(size.pool for size in SIZES.values())
TOP, DEPTH = 100, 50


def dataset_ids() -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(task.name.partition("_")[0] for task in TASKS))}


class Writer:
    """M-BEIR's files at a scale; ids of a dataset are counted over its tasks."""

    def __init__(self, root: Path, scale: float):
        self.root, self.scale, self.ids = root, scale, dataset_ids()
        self.rng, self.next = np.random.default_rng(0), defaultdict[str, int](int)

    def rows(self, count: float) -> int:
        return max(2, round(self.scale * count))

    def text(self, number: int, letters: int) -> str:
        return f"{number} " + letters // 6 * "thing "

    def fields(self, number: int, modality: str, letters: int) -> tuple[str | None, str | None]:
        picture = f"mbeir_images/{number % PICTURES}.jpg" if "image" in modality else None
        return self.text(number, letters) if "text" in modality else None, picture

    def candidates(self, task: Task, count: int) -> Iterator[tuple[str, str]]:
        """Id and line of each."""
        dataset, modality = task.name.partition("_")[0], SIZES[task.name].candidate
        for _ in range(count):
            number = self.next[f"candidates of {dataset}"]
            self.next[f"candidates of {dataset}"] += 1
            text, picture = self.fields(number, modality, 330)
            did = f"{self.ids[dataset]}:{number}"
            line = {"txt": text, "img_path": picture, "modality": modality, "did": did, "src_content": None}
            yield did, json.dumps(line) + "\n"

    def queries(self, task: Task, count: int, pool: list[str]) -> Iterator[tuple[str, list[str], str]]:
        """Id, answers and line of each."""
        dataset, size = task.name.partition("_")[0], SIZES[task.name]
        for _ in range(count):
            number = self.next[f"queries of {dataset}"]
            self.next[f"queries of {dataset}"] += 1
            text, picture = self.fields(number, size.query, 60)
            qid = f"{self.ids[dataset]}:{number}"
            right = [pool[i] for i in sorted(set(self.rng.integers(0, len(pool), size.positives).tolist()))]
            line = {"qid": qid, "query_txt": text, "query_img_path": picture, "query_modality": size.query}
            yield qid, right, json.dumps({**line, "pos_cand_list": right, "neg_cand_list": []}) + "\n"

    def write(self) -> None:
        """Everything; seconds and memory of this are nobody's."""
        (self.root / "mbeir_images").mkdir(parents=True)
        for number in range(PICTURES):
            (self.root / f"mbeir_images/{number}.jpg").write_bytes(bytes(number + 1))
        self._instructions()
        files = {task.name: task.files(self.root, "test", "local") for task in TASKS}
        wanted = (global_pool("test"), TRAIN_POOL, TRAIN_QUERIES)
        union, train_pool, train_queries = (self.root / name for name in wanted)
        for path in (union, train_queries, *files[TASKS[0].name][1:4]):
            path.parent.mkdir(parents=True, exist_ok=True)
        repeated = (UP_TRAIN_ROWS - sum(size.train for size in SIZES.values())) / sum(
            size.train for name, size in SIZES.items() if name.partition("_")[0] in SMALL
        )
        with open(union, "w") as all_pools, open(train_pool, "w") as trained, open(train_queries, "w") as train:
            for task in TASKS:
                size, of = SIZES[task.name], files[task.name]
                dids = []
                with open(of.pool, "w") as local:
                    for did, line in self.candidates(task, self.rows(size.pool)):
                        dids.append(did)
                        local.write(line)
                        all_pools.write(line)
                with open(of.queries, "w") as queries, open(of.qrels, "w") as qrels:
                    for qid, right, line in self.queries(task, self.rows(size.test), dids):
                        queries.write(line)
                        qrels.writelines(f"{qid} 0 {did} 1 0\n" for did in right)
                dids = []
                for did, line in self.candidates(task, self.rows(TRAIN_POOL_ROWS * size.pool / POOL_ROWS)):
                    dids.append(did)
                    trained.write(line)
                times = 1 + repeated * (task.name.partition("_")[0] in SMALL)
                for _, _, line in self.queries(task, self.rows(size.train), dids):
                    train.write(line * (int(times) + int(self.rng.random() < times % 1)))

    def _instructions(self) -> None:
        path = self.root / INSTRUCTIONS
        path.parent.mkdir()
        lines = ["\t".join(Instructions.COLUMNS)]
        for task in TASKS:
            dataset, size = task.name.partition("_")[0], SIZES[task.name]
            lines.append(
                "\t".join((size.query, size.candidate, dataset, str(self.ids[dataset]), "Find what is asked."))
            )
        path.write_text("\n".join(lines) + "\n")


def vectors(rows: int, dimension: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, dimension), np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def embedded(known: dict[int, np.ndarray], items: Items) -> np.ndarray:
    return known[id(items)]


class Measured(Stages):
    """Also what a stage writes into a folder, and the seconds of its searches."""

    def __init__(self, root: Path, search: Callable[..., Any]):
        self.root, self.searched, self.does = root, 0.0, search
        for module in (mining, stored):  # who searches
            module.search = self.search  # type: ignore[attr-defined]
        super().__init__()

    def search(self, *args: Any) -> Any:
        since = time.process_time()
        found = self.does(*args)
        self.searched += time.process_time() - since
        return found

    def begin(self) -> None:
        super().begin()
        self.bytes = sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())
        self.searched = 0.0

    def end(self, name: str) -> None:
        searched, before = self.searched, self.bytes
        super().end(name)  # begins anew
        self.found[f"{name}_gb"] = (self.bytes - before) / 1e9
        if searched:
            self.found[f"{name}_seconds"] -= searched
            self.found[f"{name}, search_seconds"] = searched


def some(queries: Any, gallery: Any, depth: int, *_: Any) -> tuple[Tensor, Tensor]:
    """In the place of a search: (q, depth) falling scores and different rows."""
    rows = torch.arange(len(queries))[:, None] * 7919 + torch.arange(min(depth, len(gallery))) * 1_000_003
    return torch.linspace(1, 0, rows.shape[1]).expand(rows.shape), rows % len(gallery)


def measure(root: Path, scale: float, connection: Connection, args: argparse.Namespace) -> None:
    Writer(root, scale).write()
    gigabytes = sum(path.stat().st_size for path in root.rglob("*.jsonl")) / 1e9
    results, how = root / "results", dict[str, Any](device="cpu", search_memory=args.search_memory)
    stages = Measured(root, search if args.search else some)
    for pool in ("local", "global"):
        files = [task.files(root, "test", pool) for task in TASKS]
        tasks = open_tasks(files, root, root / INSTRUCTIONS)
        stages.end(f"index, {pool} pools")
        sides = [items for task in tasks for items in (task.queries, task.gallery)]
        known = {id(items): vectors(len(items), args.dimension, seed) for seed, items in enumerate(sides)}
        stages.begin()
        results.mkdir(exist_ok=True)
        for task, ranking, _ in evaluate.evaluate(tasks, partial(embedded, known), depth=DEPTH, **how):
            write_ranking(results / f"{pool}_{task.name}.jsonl", task.queries, task.gallery, ranking)
            by_query = measures_by_query(task, ranking)
            write_by_query(results / f"{pool}_queries_{task.name}.jsonl", task.queries, ranking, by_query)
        stages.end(f"evaluation, {pool}")
        del tasks, sides, known, ranking
    stages.begin()
    pairs = open_pairs(root, TRAIN_QUERIES, TRAIN_POOL)
    stages.end("training pairs")
    since = time.process_time()
    for row in np.random.default_rng(0).integers(0, len(pairs), 1000).tolist():
        pairs[row]
    found: dict[str, Any] = {"scale": scale, "files_gb": gigabytes, "draw_ms": time.process_time() - since}
    if args.mining:
        queries = TrainingQueries(pairs)
        embeddings = vectors(len(queries), args.dimension, 1), vectors(len(pairs.pool), args.dimension, 2)
        stages.begin()
        of = mining.Embedded(queries, *embeddings, {"version": VERSION})
        pieces = mining.mined_pieces(of, root / "pieces", top=TOP, own_kind=False, search_depth=None, **how)
        with mining.mined_file(results / "mined.arrow", queries) as write:
            for path in pieces:
                for piece in read_columns(path).pieces:
                    write(piece)
        stages.end("mining")
        del of, embeddings
        stages.begin()
        assert len(RerankExamples(pairs, [results / "mined.arrow"])) == len(pairs)
        stages.end("rank examples")
    connection.send(found | stages.found)


def of_whole(found: list[dict[str, float]]) -> dict[str, tuple[float, float] | None]:
    """Of each measure how it grows from the last size but one to the last, and what it would be at 1/1.

    None where it is below a hundredth of a second or of a gibibyte, of which nothing can be told.
    """
    before, last = found[-2:]
    grown, left = math.log(last["scale"] / before["scale"]), math.log(1 / last["scale"])
    whole: dict[str, tuple[float, float] | None] = {}
    for name, value in last.items():
        if name in ("scale", "draw_ms"):
            continue
        whole[name] = None
        if min(value, before[name]) > 0.01:
            exponent = math.log(value / before[name]) / grown
            whole[name] = exponent, value * math.exp(left * exponent)
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.01, 0.1], help="of the rows, ascending")
    parser.add_argument("--dimension", type=int, default=32)
    parser.add_argument("--search_memory", type=float, default=0.5, help="GiB")
    parser.add_argument("--search", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--mining", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiny", action="store_true", help="a ten-thousandth and a five-thousandth")
    args = parser.parse_args()

    context, found = multiprocessing.get_context("fork"), []
    for scale in [0.0001, 0.0002] if args.tiny else args.scales:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = multiprocessing.Pipe(duplex=False)
            child = context.Process(target=measure, args=(Path(folder) / "mbeir", scale, theirs, args))
            child.start()
            theirs.close()
            try:
                found.append(ours.recv())
            except EOFError:
                raise SystemExit(f"at {scale} of M-BEIR's size the measurement failed") from None
            finally:
                child.join()
        print(json.dumps(found[-1]), flush=True)
    whole = of_whole(found) if len(found) > 1 else {}
    print(f"{'':<36}" + "".join(f"{of['scale']:>12g}" for of in found) + f"{'exponent':>12}{'at 1':>12}")
    for name, of_all in whole.items():
        grows = f"{of_all[0]:>12.2f}{of_all[1]:>12.1f}" if of_all else f"{'-':>12}{'-':>12}"
        print(f"{name:<36}" + "".join(f"{of[name]:>12.3f}" for of in found) + grows)
    print(json.dumps({"sizes": found, "whole": whole}))


if __name__ == "__main__":
    main()
