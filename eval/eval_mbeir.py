"""Recall on M-BEIR's tasks, in each task's own pool or in one for all. Started from scripts/eval/eval_mbeir.sh.

Every pool and every set of queries is encoded once, into <output_dir>/embeddings, where a restarted run finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lamra.datasets.items import Item
from lamra.datasets.mbeir import CANDIDATE, QUERY, InstructedQueries, Instructions, Rows, read_qrels
from lamra.eval.mbeir_tasks import PAPER_AVERAGE, TASKS, Task, choose_tasks
from lamra.eval.metrics import recall_at_k
from lamra.eval.report import write_metrics, write_ranking
from lamra.eval.retriever import Retriever, RetrieverArguments, load_retriever
from lamra.eval.search import Blocks, search
from lamra.eval.shards import Shards, encode_to_shards, made_by
from lamra.eval.zeroshot import run_name
from lamra.train.arguments import parse, require
from lamra.train.checkpoints import sha256
from lamra.train.entrypoint import run
from lamra.train.processes import start_processes

KS = (1, 5, 10, 20, 50)
DATA_NAME = "M-BEIR"


@dataclass
class MBEIRArguments(RetrieverArguments):
    data_path: str = field(default="data/M-BEIR", metadata={"help": "M-BEIR's folder"})
    pool: str = field(default="local", metadata={"help": "local: each task's own candidates; global: all together"})
    tasks: str = field(default="all", metadata={"help": "all, or names separated by commas"})
    split: str = field(default="test", metadata={"help": "test or val"})
    instructions: str = field(default="instructions/query_instructions.tsv", metadata={"help": "below data_path"})
    seed: int = field(default=0, metadata={"help": "draws each query's instruction"})
    output_dir: str | None = field(default=None, metadata={"help": "default: results/<model>/mbeir"})
    data_name: str = field(default=DATA_NAME, metadata={"help": "what to call data that are your own"})
    depth: int = field(default=50, metadata={"help": "candidates of each query in the rankings"})
    shard_size: int = field(default=100_000, metadata={"help": "items encoded between two writes"})
    search_memory: float = field(default=4.0, metadata={"help": "GiB that a process's search may use"})

    def __post_init__(self):
        super().__post_init__()
        require(self.pool in PAPER_AVERAGE, "pool", self.pool, " or ".join(PAPER_AVERAGE))
        require(self.split in ("test", "val"), "split", self.split, "test or val")
        require(self.depth >= max(KS), "depth", self.depth, f"{max(KS)} or more")
        require(self.shard_size > 0, "shard_size", self.shard_size, "1 or more")
        choose_tasks(self.tasks)


@dataclass
class TaskData:
    """A task's files, opened and checked against each other."""

    task: Task
    queries: Rows
    pool: Rows
    instructed: InstructedQueries
    answers: list[list[int]]  # for each query the rows of the pool that answer it


def main() -> None:
    (args,) = parse(MBEIRArguments)
    state = start_processes()
    with state.main_process_first():  # it writes the indexes
        tasks = open_tasks(args)
    retriever = load_retriever(args)
    encoder = Encoder(args, retriever)

    folder, metrics = encoder.folder / f"{args.split}_{args.pool}", {}
    for pool in dict.fromkeys(data.pool for data in tasks):
        sharing = [data for data in tasks if data.pool is pool]
        gallery = encoder.candidates(pool)
        parts = [encoder.queries(data) for data in sharing]
        queries = Shards([file for part in parts for file in part.files])
        blocks = Blocks.within(args.search_memory * 2**30, gallery.shape[1], args.depth)
        scores, ranking = search(queries, gallery, args.depth, blocks, state.device)  # (Q, depth) each
        if not state.is_main_process:
            continue
        sizes = [len(part) for part in parts]
        for data, score, best in zip(sharing, scores.split(sizes), ranking.split(sizes)):
            metrics[data.task.name] = recalls(best, data.answers)
            save_ranking(folder / f"ranking_{data.task.name}.jsonl", data, score, best)
    if state.is_main_process:
        metrics["average"] = average(metrics)
        write_metrics(folder, metrics)
        show(args, metrics)
        print(f"written to {folder}/")


def open_tasks(args: MBEIRArguments) -> list[TaskData]:
    """Everything but the pictures, so that a mistake in the files is told before a model is loaded."""
    root = Path(args.data_path)
    instructions = Instructions(root / args.instructions)
    pools: dict[Path, Rows] = {}
    found = []
    for task in choose_tasks(args.tasks):
        path = root / task.pool(args.split, args.pool)
        if path not in pools:
            pools[path] = Rows(path, root, CANDIDATE)
        queries = Rows(root / task.queries(args.split), root, QUERY)
        answers = read_qrels(root / task.qrels(args.split), queries, pools[path])
        instructed = InstructedQueries(queries, instructions, task.candidate, args.seed)
        found.append(TaskData(task, queries, pools[path], instructed, answers))
    return found


class Encoder:
    """Embeddings of pools and queries, from this run or an earlier one."""

    def __init__(self, args: RetrieverArguments, retriever: Retriever, default: str = "mbeir"):
        self.args, self.retriever = args, retriever
        self.folder = Path(args.output_dir or Path("results", run_name(args.model_id), default))
        self._made_by = made_by(args, retriever.settings, retriever.embedder)

    def candidates(self, pool: Rows) -> Shards:
        return self.encode(pool, pool.path, {})

    def queries(self, data: TaskData) -> Shards:
        instructions = sha256(data.instructed.instructions.path)
        return self.encode(
            data.instructed, data.queries.path, {"instructions": instructions, "seed": data.instructed.seed}
        )

    def encode(self, items: Sequence[Item], path: Path, manifest: dict) -> Shards:
        """Embeddings of the items of a file; the manifest says what else decides them."""
        return encode_to_shards(
            self.retriever,
            items,
            self.folder / "embeddings" / path.stem,
            {**self._made_by, **manifest, "file": sha256(path)},
            shard_size=self.args.shard_size,
            description=path.stem,
        )


def recalls(ranking: torch.Tensor, answers: list[list[int]]) -> dict[str, float]:
    """Recall at each of KS; a k beyond the pool counts all of it."""
    return {f"recall@{k}": recall_at_k(ranking, answers, min(k, ranking.shape[1])) for k in KS}


def average(metrics: dict[str, dict[str, float]]) -> float:
    """Mean over the tasks of the recall that the paper counts: R@5, R@10 for Fashion200K and FashionIQ."""
    counted = [metrics[task.name][f"recall@{task.k}"] for task in TASKS if task.name in metrics]
    return sum(counted) / len(counted)


def save_ranking(path: Path, data: TaskData, scores: torch.Tensor, ranking: torch.Tensor) -> None:
    rows = enumerate(zip(ranking.tolist(), scores.tolist()))
    write_ranking(path, ((data.queries.id(i), [data.pool.id(row) for row in best], score) for i, (best, score) in rows))


def show(args: MBEIRArguments, metrics: dict) -> None:
    """One line a task, in percent; the recall that counts in the average stands beside the paper's."""
    paper = args.data_name == DATA_NAME and args.split == "test"
    tasks = [task for task in TASKS if task.name in metrics]
    print(f"\n{args.data_name} {args.split}, {args.pool} pool, recall@k in percent")
    header = f"{'':<20}" + "".join(f"{f'R@{k}':>8}" for k in KS) + f"{'counted':>12}"
    print(header + ("   the paper's LamRA-Ret 7B" if paper else ""))
    for task in tasks:
        cells = "".join(f"{100 * metrics[task.name][f'recall@{k}']:8.1f}" for k in KS)
        counted = f"{100 * metrics[task.name][f'recall@{task.k}']:7.1f} @{task.k:<3}"
        print(f"{task.name:<20}{cells}{counted}" + (f"{task.paper:12.1f}" if paper and args.pool == "local" else ""))
    shown = f"{PAPER_AVERAGE[args.pool]:12.1f}" if paper and len(tasks) == len(TASKS) else ""
    print(f"{f'average of {len(tasks)}':<20}{'':{8 * len(KS)}}{100 * metrics['average']:7.1f}     {shown}")


if __name__ == "__main__":
    run(main)
