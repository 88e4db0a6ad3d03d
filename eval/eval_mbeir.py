"""Recall on M-BEIR's tasks, in each task's own pool or in one for all. Started from scripts/eval/eval_mbeir.sh.

Every pool and every set of queries is encoded once, into <output_dir>/embeddings, where a restarted run finds it.
With upstream's flags it evaluates one file of queries, and writes upstream's result files too (eval/upstream_files.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from lamra.common import upstream
from lamra.common.cli import note, require, run
from lamra.common.errors import UserError
from lamra.common.files import sha256
from lamra.common.lock import folder_lock
from lamra.common.processes import start_processes
from lamra.datasets.items import Item
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import DATA_PATH, INSTRUCTIONS, PAPER_AVERAGE, TASKS, Task, choose_tasks, task_of_file
from lamra.datasets.mbeir.qrels import read_qrels
from lamra.datasets.mbeir.queries import InstructedQueries
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows
from lamra.eval import upstream_files
from lamra.eval.inference import Retriever, RetrieverArguments, load_retriever
from lamra.eval.metrics import recall_at_k
from lamra.eval.reporting.files import write_metrics, write_provenance, write_ranking
from lamra.eval.search import Blocks, search
from lamra.eval.shards import Shards, encode_to_shards, made_by
from lamra.eval.zeroshot import output_folder

KS = (1, 5, 10, 20, 50)
DATA_NAME = "M-BEIR"


@dataclass
class MBEIRArguments(RetrieverArguments):
    data_path: str = field(default=DATA_PATH, metadata={"help": "M-BEIR's folder"})
    pool: str | None = field(
        default=None, metadata={"help": "local (default): each task's own candidates; global: all together"}
    )
    tasks: str | None = field(default=None, metadata={"help": "all (default), or names separated by commas"})
    split: str | None = field(default=None, metadata={"help": "test (default) or val"})
    query_data_path: str | None = field(default=None, metadata={"help": "one file of queries, instead of --tasks"})
    cand_pool_path: str | None = field(default=None, metadata={"help": "its candidates"})
    qrels_path: str | None = field(default=None, metadata={"help": "its answers"})
    instructions: str = field(default=INSTRUCTIONS, metadata={"help": "below data_path"})
    seed: int = field(default=0, metadata={"help": "draws each query's instruction"})
    output_dir: str | None = field(default=None, metadata={"help": "default: results/<model>/mbeir"})
    data_name: str = field(default=DATA_NAME, metadata={"help": "what to call data that are your own"})
    depth: int = field(default=50, metadata={"help": "candidates of each query in the rankings"})
    shard_size: int = field(default=100_000, metadata={"help": "items encoded between two writes"})
    search_memory: float = field(default=4.0, metadata={"help": "GiB that a process's search may use"})

    def __post_init__(self):
        super().__post_init__()
        if len({bool(path) for path in (self.query_data_path, self.cand_pool_path, self.qrels_path)}) > 1:
            raise UserError("--query_data_path, --cand_pool_path and --qrels_path belong together: give all three")
        chosen = {"tasks": "all", "split": "test", "pool": "local"}
        if self.query_data_path:
            task, split = task_of_file(self.query_data_path)
            pool = "global" if Path(self.cand_pool_path).name.startswith("mbeir_union_") else "local"
            chosen = {"tasks": task.name, "split": split or self.split or "test", "pool": pool}
        for name, value in chosen.items():
            given = getattr(self, name)
            if self.query_data_path and given not in (None, value):
                files = f"--query_data_path {self.query_data_path} and --cand_pool_path {self.cand_pool_path}"
                raise UserError(f"--{name} {given} contradicts {files}, which mean {value}: leave it out")
            setattr(self, name, given or value)
        require(self.pool in PAPER_AVERAGE, "pool", self.pool, " or ".join(PAPER_AVERAGE))
        require(self.split in ("test", "val"), "split", self.split, "test or val")
        require(self.depth >= max(KS), "depth", self.depth, f"{max(KS)} or more")
        require(self.shard_size > 0, "shard_size", self.shard_size, "1 or more")
        if not self.query_data_path:
            choose_tasks(self.tasks)

    def upstream_files(self, task: Task) -> tuple[Path, Path] | None:
        """Where upstream's evaluation writes a task's ranking (a prefix) and its recalls; None where it has no say."""
        if not self.query_data_path:
            return None
        model, folder = Path(self.model_id).name, upstream_files.RETRIEVED
        prefix = folder / f"{Path(self.qrels_path).name.removesuffix('_qrels.txt')}_{model}"
        return prefix, folder / f"{model}_results.txt"


class Pools(Sequence[Item]):
    """Several pools as one, without a file of its own."""

    def __init__(self, parts: Iterable[Rows]):
        self.parts = list(parts)
        self.path, self.root = " and ".join(str(part.path) for part in self.parts), self.parts[0].root
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, row: int) -> tuple[Rows, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.parts[number], row - int(self._starts[number])

    def __getitem__(self, row: int) -> Item:
        part, row = self._place(row)
        return part[row]

    def id(self, row: int) -> str:
        part, row = self._place(row)
        return part.id(row)

    def modality(self, row: int) -> str:
        part, row = self._place(row)
        return part.modality(row)

    def rows_of(self, keys: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n,) rows of integer keys; -1 where there is none."""
        found = np.full(len(keys), -1)
        for part, start in zip(self.parts, self._starts):
            rows = part.rows_of(keys)
            found = np.where((found < 0) & (rows >= 0), rows + start, found)
        return found


@dataclass
class TaskData:
    """A task's files, opened and checked against each other."""

    task: Task
    queries: Rows
    pool: Rows | Pools
    instructed: InstructedQueries
    answers: list[list[int]]  # for each query the rows of the pool that answer it
    qrels: Path | None = None


def main() -> None:
    (args,) = upstream.parse(upstream.EVALUATION, MBEIRArguments)
    evaluate(args)


def evaluate(args: MBEIRArguments, *, together: bool = False) -> None:
    """Encode, search, write rankings and metrics, print the table; `together` joins the local pools to a global one."""
    state = start_processes()
    with folder_lock(output_folder(args, "mbeir")):
        _evaluate(args, together, state)


def _evaluate(args: MBEIRArguments, together: bool, state: PartialState) -> None:
    with state.main_process_first():  # it writes the indexes
        tasks = open_tasks(args, files_of(args, "local" if together else args.pool), together=together)
    retriever = load_retriever(args)
    encoder = Encoder(args, retriever)

    folder, metrics = encoder.folder / f"{args.split}_{args.pool}", {}
    if args.query_data_path:  # a folder for each file: a table of one task must not replace that of all
        folder = encoder.folder / Path(args.query_data_path).stem / Path(args.cand_pool_path).stem
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
            if paths := args.upstream_files(data.task):
                upstream_files.write_retrieved(paths[0], ranked_ids(data, score, best), nested=not together)
                upstream_files.append_recalls(paths[1], data.qrels, metrics[data.task.name])
    if state.is_main_process:
        chosen = [data.task for data in tasks]
        metrics["average"] = average(metrics, chosen)
        write_provenance(folder, {**encoder.made_by, "files": encoder.files, "seed": args.seed})
        write_metrics(folder, metrics)
        show(args, chosen, metrics)
        print(f"written to {folder}/")


def files_of(args: MBEIRArguments, pool: str) -> list[tuple[Task, Path, Path, Path]]:
    """Each chosen task with its queries, its candidates and its qrels."""
    if args.query_data_path:
        paths = (args.query_data_path, args.cand_pool_path, args.qrels_path)
        return [(task_of_file(args.query_data_path)[0], *map(Path, paths))]
    return layout(args, pool)


def layout(args: MBEIRArguments, pool: str) -> list[tuple[Task, Path, Path, Path]]:
    root, split = Path(args.data_path), args.split
    return [
        (task, root / task.queries(split), root / task.pool(split, pool), root / task.qrels(split))
        for task in choose_tasks(args.tasks)
    ]


def open_tasks(
    args: MBEIRArguments, files: Sequence[tuple[Task, Path, Path, Path]] | None = None, *, together: bool = False
) -> list[TaskData]:
    """Everything but the pictures, so that a mistake in the files is told before a model is loaded.

    Args:
        files: see files_of; by default those that the flags choose of M-BEIR's own.
        together: all tasks search in the pools of all.
    """
    root = Path(args.data_path)
    files = files or layout(args, args.pool)
    instructions = Instructions(root / args.instructions)
    pools = {path: Rows(path, root, CANDIDATE) for path in dict.fromkeys(path for _, _, path, _ in files)}
    if together:
        pools = dict.fromkeys(pools, Pools(pools.values()))
    found = []
    for task, queries_path, pool_path, qrels_path in files:
        queries, pool = Rows(queries_path, root, QUERY), pools[pool_path]
        answers = read_qrels(qrels_path, queries, pool, root / task.pool(args.split, "global"), note)
        candidate = task.candidate or modality_of(queries, pool, answers)
        instructed = InstructedQueries(queries, instructions, candidate, args.seed)
        found.append(TaskData(task, queries, pool, instructed, answers, qrels_path))
    return found


def modality_of(queries: Rows, pool: Rows | Pools, answers: list[list[int]]) -> str:
    """What the queries of a file look for: the modality of their answers.

    Raises:
        UserError: they are of several.
    """
    found = sorted({pool.modality(row) for rows in answers for row in rows})
    if len(found) != 1:
        raise UserError(
            f"the answers to {queries.path} are of {len(found)} modalities ({'; '.join(found)}): "
            "evaluate the queries of each from a file of their own"
        )
    return found[0]


class Encoder:
    """Embeddings of pools and queries, from this run or an earlier one."""

    def __init__(self, args: RetrieverArguments, retriever: Retriever, default: str = "mbeir"):
        self.args, self.retriever = args, retriever
        self.folder = output_folder(args, default)
        self.made_by = made_by(args, retriever.settings, retriever.embedder)
        self.files: dict[str, str] = {}  # name of each encoded file -> its sha256

    def candidates(self, pool: Rows | Pools) -> Shards:
        if isinstance(pool, Pools):
            return Shards([file for part in pool.parts for file in self.candidates(part).files])
        return self.encode(pool, pool.path, {})

    def queries(self, data: TaskData) -> Shards:
        instructions = sha256(data.instructed.instructions.path)
        return self.encode(
            data.instructed, data.queries.path, {"instructions": instructions, "seed": data.instructed.seed}
        )

    def encode(self, items: Sequence[Item], path: Path, manifest: dict) -> Shards:
        """Embeddings of the items of a file; the manifest says what else decides them."""
        self.files[path.name] = sha256(path)
        return encode_to_shards(
            self.retriever,
            items,
            self.folder / "embeddings" / path.stem,
            {**self.made_by, **manifest, "file": self.files[path.name]},
            shard_size=self.args.shard_size,
            description=path.stem,
        )


def recalls(ranking: torch.Tensor, answers: list[list[int]]) -> dict[str, float]:
    """Recall at each of KS; a k beyond the pool counts all of it."""
    return {f"recall@{k}": recall_at_k(ranking, answers, min(k, ranking.shape[1])) for k in KS}


def average(metrics: dict[str, dict[str, float]], tasks: Sequence[Task] = TASKS) -> float:
    """Mean over the tasks of the recall that the paper counts: R@5, R@10 for Fashion200K and FashionIQ."""
    counted = [metrics[task.name][f"recall@{task.k}"] for task in tasks if task.name in metrics]
    return sum(counted) / len(counted)


def save_ranking(path: Path, data: TaskData, scores: torch.Tensor, ranking: torch.Tensor) -> None:
    write_ranking(path, ranked_ids(data, scores, ranking))


def ranked_ids(
    data: TaskData, scores: torch.Tensor, ranking: torch.Tensor
) -> Iterator[tuple[str, list[str], list[float]]]:
    """Each query's id, its candidates' ids, best first, and their scores."""
    for i, (best, score) in enumerate(zip(ranking.tolist(), scores.tolist())):
        yield data.queries.id(i), [data.pool.id(row) for row in best], score


def show(args: MBEIRArguments, tasks: Sequence[Task], metrics: dict) -> None:
    """One line a task, in percent; the recall that counts in the average stands beside the paper's."""
    paper = args.data_name == DATA_NAME and args.split == "test"
    print(f"\n{args.data_name} {args.split}, {args.pool} pool, recall@k in percent")
    header = f"{'':<20}" + "".join(f"{f'R@{k}':>8}" for k in KS) + f"{'counted':>12}"
    print(header + ("   the paper's LamRA-Ret 7B" if paper else ""))
    for task in tasks:
        cells = "".join(f"{100 * metrics[task.name][f'recall@{k}']:8.1f}" for k in KS)
        counted = f"{100 * metrics[task.name][f'recall@{task.k}']:7.1f} @{task.k:<3}"
        print(
            f"{task.name:<20}{cells}{counted}"
            + (f"{task.paper:12.1f}" if paper and task.paper and args.pool == "local" else "")
        )
    shown = f"{PAPER_AVERAGE[args.pool]:12.1f}" if paper and len(tasks) == len(TASKS) else ""
    print(f"{f'average of {len(tasks)}':<20}{'':{8 * len(KS)}}{100 * metrics['average']:7.1f}     {shown}")


if __name__ == "__main__":
    run(main)
