"""Recall before and after a reranker on M-BEIR. Started from scripts/eval/rerank_mbeir.sh.

It reads the rankings that an evaluation of a retriever wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lamra.common.cli import parse, run
from lamra.common.flags import FILE, FOLDER, LARGEST_SEED, OUT_FOLDER, flag, require
from lamra.common.lock import folder_lock
from lamra.common.processes import first_process_first, is_first_process
from lamra.datasets.mbeir.layout import (
    DATA_NAME,
    DATA_PATH,
    GET_MBEIR,
    INSTRUCTIONS,
    PAPER_AVERAGE,
    TASKS,
    choose_tasks,
)
from lamra.datasets.mbeir.tasks import open_tasks
from lamra.datasets.tasks import KS, Reported, RetrievalTask
from lamra.eval.flags import RetrieverArguments, output_folder
from lamra.eval.metrics import average, measures
from lamra.eval.rerank.fusion import rerank
from lamra.eval.rerank.reranking import RankingFlags, Reranking, Retrieved, read_retrieved, require_depth

DEPTHS = {"pointwise": 50, "listwise": 5}  # LamRA's, by style
WEIGHTS_TO_TRY = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)


@dataclass
class RerankArguments(RankingFlags, RetrieverArguments):
    tune_weight: str | None = flag(None, "rankings of M-BEIR's val split to choose it on", path=FOLDER)
    data_path: str = flag(DATA_PATH, "M-BEIR's folder", path=FOLDER, source=GET_MBEIR)
    pool: str = flag("local", "the pool that the rankings are of", one_of=PAPER_AVERAGE)
    tasks: str = flag("all", "all, or names separated by commas")
    split: str = flag("test", "of M-BEIR", one_of=("test", "val"))
    instructions: str = flag(INSTRUCTIONS, "below data_path", path=FILE, inside="data_path", source=GET_MBEIR)
    seed: int = flag(0, "draws each query's instruction", low=0, high=LARGEST_SEED)
    data_name: str = flag(DATA_NAME, "what to call data that is not M-BEIR's own")
    output_dir: str | None = flag(None, "default: results/<model>/<rankings' folder>", path=OUT_FOLDER)

    def __post_init__(self):
        super().__post_init__()
        if self.tune_weight:
            pointwise = self.style == "pointwise" and self.weight is None
            require(pointwise, "tune_weight", self.tune_weight, "--style pointwise, and no --weight")
        choose_tasks(self.tasks)

    def check_paths(self) -> None:
        super().check_paths()
        output_folder(self, Path(self.rankings).name)


def main() -> None:
    (args,) = parse(RerankArguments)
    from lamra.eval.cache.manifest import provenance_of  # torch and transformers, which --help does not wait for
    from lamra.eval.inference import start
    from lamra.eval.rerank.judge import load_judge

    start(args)
    folder = output_folder(args, Path(args.rankings).name) / args.style
    with folder_lock(folder):
        with first_process_first("the first process reads M-BEIR's files"):  # and writes the indexes
            retrieved = open_rankings(args)
            tuned_on = open_rankings(replace(args, rankings=args.tune_weight, split="val")) if args.tune_weight else []
        judge = load_judge(args, picture_memory=args.picture_memory)
        provenance = {**provenance_of(args, judge.settings, judge.model), "rank_style": judge.settings.rank_style}
        reranking = Reranking(judge, folder, args.style, depth_of(args), provenance)
        weights = {of.task.name: best_weight(of, reranking.answers(of, f"val_{of.task.name}")) for of in tuned_on}
        metrics = reranking.run(
            retrieved, lambda task: weights.get(task.name, task.weight if args.weight is None else args.weight)
        )
        if is_first_process():
            print_table(args, [of.task for of in retrieved], metrics)
        reranking.tell_cost()


def open_rankings(args: RerankArguments) -> list[Retrieved]:
    """Everything but the pictures, so that a mistake in the files is told before a model is loaded."""
    tasks = open_tasks(
        [task.files(args.data_path, args.split, args.pool) for task in choose_tasks(args.tasks)],
        args.data_path,
        Path(args.data_path, args.instructions),
        seed=args.seed,
        with_paper=args.data_name == DATA_NAME and args.split == "test" and args.pool == "local",
    )
    retrieved = [read_retrieved(task, args.rankings, task.name.removesuffix("_test")) for task in tasks]
    require_depth(depth_of(args), args.rankings, retrieved)
    return [of._replace(manifest={**of.manifest, "seed": args.seed}) for of in retrieved]


def depth_of(args: RerankArguments) -> int:
    return args.depth or DEPTHS[args.style]


def best_weight(of: Retrieved, answers: Sequence[list]) -> float:
    """The weight of the highest recall that counts, then recall@1, on a validation ranking; the smallest of equals."""

    def quality(weight: float) -> tuple[float, float]:
        found = measures(of.task, rerank(of.ranking, answers, "pointwise", weight))
        return found[f"recall@{of.task.counted}"], found["recall@1"]

    return max(WEIGHTS_TO_TRY, key=quality)  # the first of the best


def print_table(args: RerankArguments, tasks: Sequence[RetrievalTask], metrics: Mapping) -> None:
    """One line a task, in percent, before and after; what counts, R@k, stands beside the paper's."""
    print(f"\n{args.data_name}, {args.style}, top {depth_of(args)}: recall in percent, retrieved -> reranked")
    header = f"{'':<20}" + "".join(f"{f'R@{k}':>16}" for k in KS) + f"{'weight':>8}{'counted':>20}"
    print(header + ("   the paper's 7B" if any(task.reported for task in tasks) else ""))
    for task in tasks:
        before, after = metrics[task.name]["before"], metrics[task.name]["after"]
        cells = "".join(_change(before[f"recall@{k}"], after[f"recall@{k}"]) for k in KS)
        weight, counts = metrics[task.name].get("weight", "-"), f"recall@{task.counted}"
        counted = _change(before[counts], after[counts]) + f" @{task.counted:<2}"
        paper = ""
        if isinstance(task.reported, Reported):
            paper = f"   {task.reported.retrieved:.1f} -> {task.reported.reranked:.1f}"
        print(f"{task.name:<20}{cells}{weight:>8}{counted}{paper}")
    ks = {task.name: task.counted for task in tasks}
    before, after = (average(ks, {name: of[when] for name, of in metrics.items()}) for when in ("before", "after"))
    whole = args.data_name == DATA_NAME and args.split == "test" and len(tasks) == len(TASKS)
    paper = "   {} -> {}".format(*PAPER_AVERAGE[args.pool]) if whole else ""
    print(f"{f'average of {len(tasks)}':<20}{'':{16 * len(KS) + 8}}{_change(before, after)}   {paper}")


def _change(before: float, after: float) -> str:
    return f"{f'{100 * before:.1f} -> {100 * after:.1f}':>16}"


if __name__ == "__main__":
    run(main)
