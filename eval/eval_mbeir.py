"""Recall on M-BEIR's tasks, in each task's own pool or in one for all. Started from scripts/eval/eval_mbeir.sh.

Every pool and every set of queries is encoded once, into <output_dir>/embeddings, where a restarted run finds it.
With upstream's flags it evaluates one file of queries, and writes upstream's result files too (eval/upstream_files.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lamra.common import upstream
from lamra.common.cli import run
from lamra.common.errors import UserError
from lamra.common.flags import FILE, FOLDER, LARGEST_SEED, OUT_FOLDER, flag, require, require_path
from lamra.common.lock import folder_lock
from lamra.common.processes import first_process_first, is_first_process
from lamra.datasets.mbeir.layout import (
    DATA_NAME,
    DATA_PATH,
    GET_MBEIR,
    INSTRUCTIONS,
    PAPER_AVERAGE,
    TASKS,
    Task,
    TaskFiles,
    choose_tasks,
    global_pool,
    task_of_file,
)
from lamra.datasets.mbeir.tasks import open_tasks
from lamra.datasets.rankings import write_by_query, write_ranking
from lamra.eval import upstream_files
from lamra.eval.flags import SearchArguments, ShardFlags, output_folder
from lamra.eval.reporting.results import MADE_BY, METRICS, of_earlier_tasks, write_json

KS = (1, 5, 10, 20, 50)


@dataclass
class MBEIRArguments(ShardFlags, SearchArguments):
    data_path: str = flag(DATA_PATH, "M-BEIR's folder", path=FOLDER, source=GET_MBEIR)
    pool: str | None = flag(
        None, "local (default): each task's own candidates; global: all together", one_of=PAPER_AVERAGE
    )
    tasks: str | None = flag(None, "all (default), or names separated by commas")
    split: str | None = flag(None, "default: test", one_of=("test", "val"))
    query_data_path: str | None = flag(None, "one file of queries, instead of --tasks", path=FILE)
    cand_pool_path: str | None = flag(None, "its candidates", path=FILE)
    qrels_path: str | None = flag(None, "its answers", path=FILE)
    instructions: str = flag(INSTRUCTIONS, "below data_path", path=FILE, inside="data_path", source=GET_MBEIR)
    seed: int = flag(0, "draws each query's instruction", low=0, high=LARGEST_SEED)
    output_dir: str | None = flag(None, "default: results/<model>/mbeir", path=OUT_FOLDER)
    data_name: str = flag(DATA_NAME, "what to call data that are your own")
    depth: int = flag(max(KS), "candidates of each query in the rankings", low=max(KS))
    search_memory: float = flag(4.0, "GiB that a process's search may use", above=0)

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
        if not self.query_data_path:
            choose_tasks(self.tasks)
        enough = self.rescore in (0, max(self.rescore, self.depth))
        require(enough, "rescore", self.rescore, f"0, or --depth ({self.depth}) and more")

    def check_paths(self) -> None:
        super().check_paths()
        output_folder(self, "mbeir")
        if paths := self.upstream_files(TASKS[0].name):
            require_path("query_data_path", paths[1].parent, OUT_FOLDER)

    @property
    def of_paper(self) -> bool:
        """Whether the paper has numbers of this data."""
        return self.data_name == DATA_NAME and self.split == "test"

    def upstream_files(self, task: str) -> tuple[Path, Path] | None:
        """Where upstream's evaluation writes a task's ranking (a prefix) and its recalls; None where it has no say."""
        if not self.query_data_path:
            return None
        model, folder = Path(self.model_id).name, upstream_files.RETRIEVED
        prefix = folder / f"{Path(self.qrels_path).name.removesuffix('_qrels.txt')}_{model}"
        return prefix, folder / f"{model}_results.txt"


def main() -> None:
    evaluate_mbeir(*upstream.parse(upstream.EVALUATION, MBEIRArguments))


def evaluate_mbeir(args: MBEIRArguments, *, together: bool = False) -> None:
    """Encode, search, write rankings and metrics, print the table; `together` joins the local pools to a global one."""
    from lamra.eval.cache.embeddings import EmbeddingsCache  # torch and transformers, which --help does not wait for
    from lamra.eval.evaluate import evaluate
    from lamra.eval.inference import load_retriever, start
    from lamra.eval.metrics import average, measures_by_query
    from lamra.eval.unreadable import Unreadable

    state, output = start(args), output_folder(args, "mbeir")
    with folder_lock(output):
        files = files_of(args, "local" if together else args.pool)
        with first_process_first("the first process reads M-BEIR's files"):  # and writes the indexes
            tasks = open_tasks(
                files,
                args.data_path,
                Path(args.data_path, args.instructions),
                seed=args.seed,
                ks=KS,
                together=together,
                with_paper=args.of_paper and args.pool == "local",
            )
        retriever = load_retriever(args)
        unreadable = Unreadable(args.skip_unreadable, retriever)
        tasks = unreadable.left_out_of(tasks)
        provenance = retriever.provenance(args) | args.kept_as
        cache = EmbeddingsCache(output / "embeddings", retriever, provenance, args.shard_size)

        folder = output / f"{args.split}_{args.pool}"
        if args.query_data_path:  # a folder for each file: a table of one task must not replace that of all
            folder = output / Path(args.query_data_path).stem / Path(args.cand_pool_path).stem
        made_by = {**provenance, **args.stored_as, "seed": args.seed}
        # Tasks that are evaluated one by one come together in one table.
        before, earlier = of_earlier_tasks(folder, made_by) if is_first_process() else ({}, {})
        metrics = {task.name: before[task.name] for task in TASKS if task.name in before}
        qrels = {of.task.name: of.qrels for of in files}
        for task, ranking, found in evaluate(
            tasks,
            cache.embed,
            depth=args.depth,
            search_memory=args.search_memory,
            device=state.device,
            **args.stored_as,
        ):
            metrics[task.name] = found
            write_ranking(folder / f"ranking_{task.name}.jsonl", task.queries, task.gallery, ranking)
            by_query = measures_by_query(task, ranking)
            write_by_query(folder / f"queries_{task.name}.jsonl", task.queries, ranking, by_query)
            if paths := args.upstream_files(task.name):
                upstream_files.write_retrieved(paths[0], task.queries, task.gallery, ranking, nested=not together)
                upstream_files.append_recalls(paths[1], qrels[task.name], found)
        if is_first_process():
            known = {task.name: task for task in (*TASKS, *(of.task for of in files))}
            measured = [task for name, task in known.items() if name in metrics]
            mean = average({task.name: task.k for task in measured}, metrics)
            files_read = {**earlier.get("files", {}), **cache.files}
            write_json(folder / MADE_BY, {**made_by, "files": files_read})
            told = {**args.kept_as, **args.stored_as, **retriever.for_metrics, **unreadable.for_metrics(before)}
            write_json(folder / METRICS, {**metrics, "average": mean, **told})
            print_table(args, measured, metrics, mean)
            print(f"written to {folder}/")


def files_of(args: MBEIRArguments, pool: str) -> list[TaskFiles]:
    """The files of each chosen task."""
    if not args.query_data_path:
        return [task.files(args.data_path, args.split, pool) for task in choose_tasks(args.tasks)]
    task, _ = task_of_file(args.query_data_path)
    queries, candidates, qrels = map(Path, (args.query_data_path, args.cand_pool_path, args.qrels_path))
    return [TaskFiles(task, queries, candidates, qrels, Path(args.data_path, global_pool(args.split)))]


def print_table(args: MBEIRArguments, tasks: Sequence[Task], metrics: Mapping, mean: float) -> None:
    """One line a task, in percent; the recall that counts in the average stands beside the paper's."""
    named = "".join(f", {name} {value}" for name, value in {**args.kept_as, **args.stored_as}.items())
    print(f"\n{args.data_name} {args.split}, {args.pool} pool{named}, in percent")
    header = f"{'':<20}" + "".join(f"{f'R@{k}':>8}" for k in KS) + f"{'nDCG@10':>9}{'MRR@10':>8}{'counted':>12}"
    print(header + ("   the paper's LamRA-Ret 7B" if args.of_paper else ""))
    for task in tasks:
        found = metrics[task.name]
        cells = "".join(f"{100 * found[f'recall@{k}']:8.1f}" for k in KS)
        ranks = [f"{100 * found[name]:.1f}" if name in found else "-" for name in ("ndcg@10", "mrr@10")]
        cells += "{:>9}{:>8}".format(*ranks)  # "-": an earlier version did not measure them
        counted = f"{100 * found[f'recall@{task.k}']:7.1f} @{task.k:<3}"
        reported = task.reported if args.of_paper and args.pool == "local" else None
        print(f"{task.name:<20}{cells}{counted}" + (f"{reported.retrieved:12.1f}" if reported else ""))
    paper = f"{PAPER_AVERAGE[args.pool].retrieved:12.1f}" if args.of_paper and len(tasks) == len(TASKS) else ""
    print(f"{f'average of {len(tasks)}':<20}{'':{8 * len(KS) + 17}}{100 * mean:7.1f}     {paper}")


if __name__ == "__main__":
    run(main)
