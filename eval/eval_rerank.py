"""Recall before and after a reranker, on M-BEIR or on captioned pictures. Started from scripts/eval/rerank_*.sh.

It reads the rankings that an evaluation of a retriever wrote. The reranker's answers are kept in <output_dir>/answers:
a restarted run, or one with another weight, does not compute them again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lamra.common.cli import note, parse, run
from lamra.common.errors import UserError
from lamra.common.files import sha256, whole_file
from lamra.common.flags import FILE, FILE_OR_FOLDER, FOLDER, LARGEST_SEED, OUT_FOLDER, flag, require
from lamra.common.lock import folder_lock
from lamra.common.processes import is_first_process
from lamra.datasets.caption import captioned_tasks, load_captioned_images
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
from lamra.datasets.rankings import (
    RankedQuery,
    ranking_files,
    ranking_of,
    read_ranking,
    write_by_query,
    write_ranking,
)
from lamra.datasets.tasks import KS, Reported, RetrievalTask
from lamra.eval.flags import RetrieverArguments, output_folder
from lamra.eval.metrics import average, measures, measures_by_query
from lamra.eval.reporting.results import MADE_BY, METRICS, of_earlier_tasks, write_json
from lamra.eval.rerank.fusion import rerank

DEPTHS = {"pointwise": 50, "listwise": 5}  # LamRA's on M-BEIR, by style
DEPTH_ZEROSHOT = 10
UPSTREAM_FLICKR = {"image_retrieval": "flickr_t2i", "text_retrieval": "flickr_i2t"}
WEIGHTS_TO_TRY = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)


@dataclass
class RerankArguments(RetrieverArguments):
    rankings: str = flag("", "folder of rankings that an evaluation wrote, ours or upstream's", path=FOLDER)
    style: str = flag("pointwise", "how candidates are asked about", one_of=DEPTHS)
    depth: int | None = flag(None, "candidates to rerank; default: LamRA's", low=1)
    weight: float | None = flag(None, "of P(Yes), pointwise; default: LamRA's of the task", low=0)
    tune_weight: str | None = flag(None, "rankings of M-BEIR's val split to choose it on", path=FOLDER)
    data_path: str = flag(DATA_PATH, "M-BEIR's folder", path=FOLDER, source=GET_MBEIR)
    pool: str = flag("local", "the pool that the rankings are of", one_of=PAPER_AVERAGE)
    tasks: str = flag("all", "all, or names separated by commas")
    split: str = flag("test", "of M-BEIR", one_of=("test", "val"))
    instructions: str = flag(INSTRUCTIONS, "below data_path", path=FILE, inside="data_path", source=GET_MBEIR)
    seed: int = flag(0, "draws each query's instruction", low=0, high=LARGEST_SEED)
    picture_memory: float = flag(4.0, "GiB of pictures' features that a process keeps", low=0)
    image_data_path: str | None = flag(None, "captioned pictures instead of M-BEIR", path=FOLDER)
    text_data_path: str | None = flag(None, "their captions", path=FILE_OR_FOLDER)
    data_name: str | None = flag(None, "what to call data; Flickr30K and COCO are known")
    output_dir: str | None = flag(None, "default: results/<model>/<rankings' folder>", path=OUT_FOLDER)

    def __post_init__(self):
        super().__post_init__()
        if bool(self.image_data_path) != bool(self.text_data_path):
            raise UserError("--image_data_path and --text_data_path belong together: give both")
        if self.tune_weight:
            pointwise = self.style == "pointwise" and self.weight is None and not self.image_data_path
            require(pointwise, "tune_weight", self.tune_weight, "--style pointwise on M-BEIR, and no --weight")
        choose_tasks(self.tasks)

    def unread(self) -> Collection[str]:
        return ("data_path", "instructions") if self.image_data_path else ()

    def check_paths(self) -> None:
        super().check_paths()
        output_folder(self, Path(self.rankings).name)

    @property
    def name(self) -> str:
        return self.data_name or (DATA_NAME if not self.image_data_path else "captioned pictures")


class Retrieved(NamedTuple):
    """A task, the ranking that a retriever wrote for it, and the digests of the files that decide both."""

    task: RetrievalTask
    ranking: list[RankedQuery]
    manifest: dict[str, str | int]


def main() -> None:
    (args,) = parse(RerankArguments)
    from lamra.eval.cache.manifest import provenance_of  # torch and transformers, which --help does not wait for
    from lamra.eval.inference import start
    from lamra.eval.rerank.answers import answers_of
    from lamra.eval.rerank.judge import load_judge

    state, folder = start(args), output_folder(args, Path(args.rankings).name) / args.style
    with folder_lock(folder):
        with state.main_process_first():  # it writes the indexes
            retrieved = open_rankings(args)
            tuned_on = open_rankings(replace(args, rankings=args.tune_weight, split="val")) if args.tune_weight else []
        judge = load_judge(args, picture_memory=args.picture_memory)
        provenance = {**provenance_of(args, judge.settings, judge.model), "rank_style": judge.settings.rank_style}

        def answers(of: Retrieved, name: str) -> list[list]:
            kept_in, manifest = folder / "answers" / name, provenance | of.manifest
            return answers_of(judge, of.task, of.ranking, args.style, depth_of(args), kept_in, manifest, of.task.name)

        weights = {of.task.name: best_weight(of, answers(of, f"val_{of.task.name}")) for of in tuned_on}
        made_by = {**provenance, "depth": depth_of(args)}
        metrics, earlier = of_earlier_tasks(folder, made_by) if is_first_process() else ({}, {})
        for of in retrieved:
            task = of.task
            weight = weights.get(task.name, task.weight if args.weight is None else args.weight)
            after = rerank(of.ranking, answers(of, task.name), args.style, weight)
            metrics[task.name] = {"before": measures(task, of.ranking), "after": measures(task, after)}
            metrics[task.name] |= {"weight": weight} if args.style == "pointwise" else {}
            if is_first_process():
                write_ranking(folder / f"ranking_{task.name}.jsonl", task.queries, task.gallery, after)
                by_query = measures_by_query(task, after)
                write_by_query(folder / f"queries_{task.name}.jsonl", task.queries, after, by_query)
        if is_first_process():
            rankings = {**earlier.get("rankings", {}), **{of.task.name: of.manifest for of in retrieved}}
            write_json(folder / MADE_BY, {**made_by, "rankings": rankings})
            write_json(folder / METRICS, metrics)
            print_table(args, [of.task for of in retrieved], metrics)
            if judge.queries:
                seconds, tokens = judge.seconds / judge.queries, judge.tokens / judge.queries
                with whole_file(folder / "cost.json") as file:
                    file.write(json.dumps({"seconds_per_query": seconds, "tokens_per_query": tokens}) + "\n")
                print(f"{seconds:.4f} s and {tokens:.0f} tokens a query, {judge.queries} on this process")
            print(f"written to {folder}/")


def open_rankings(args: RerankArguments) -> list[Retrieved]:
    """Everything but the pictures, so that a mistake in the files is told before a model is loaded."""
    if args.image_data_path:  # queries have their instruction, as LamRA's have
        data = load_captioned_images(args.image_data_path, args.text_data_path)
        note(f"{args.text_data_path}: {data.layout}, {len(data.images)} pictures, {len(data.texts)} captions")
        tasks = captioned_tasks(data, args.name, args.text_data_path, "clean")
    else:
        tasks = open_tasks(
            [task.files(args.data_path, args.split, args.pool) for task in choose_tasks(args.tasks)],
            args.data_path,
            Path(args.data_path, args.instructions),
            seed=args.seed,
            with_paper=args.name == DATA_NAME and args.split == "test" and args.pool == "local",
        )
    retrieved = []
    for task in tasks:
        path = ranking_of(args.rankings, task.name, UPSTREAM_FLICKR.get(task.name, task.name.removesuffix("_test")))
        # Upstream's files name captioned pictures and captions by their positions.
        ranking = read_ranking(path, task.queries, task.gallery, by_position=bool(args.image_data_path))
        manifest: dict[str, str | int] = {"ranking": "".join(map(sha256, ranking_files(path)))}
        manifest |= {name: sha256(file) for name, file in task.files.items()}
        manifest |= {} if args.image_data_path else {"seed": args.seed}
        retrieved.append(Retrieved(task, ranking, manifest))
    deepest = max(len(ranked.candidates) for of in retrieved for ranked in of.ranking)
    if depth_of(args) > deepest:
        raise UserError(
            f"--depth {depth_of(args)}: the rankings in {args.rankings} have at most {deepest} candidates a query; "
            f"give {deepest} or less"
        )
    return retrieved


def depth_of(args: RerankArguments) -> int:
    return args.depth or min(DEPTHS[args.style], DEPTH_ZEROSHOT if args.image_data_path else DEPTHS[args.style])


def best_weight(of: Retrieved, answers: Sequence[list]) -> float:
    """The weight of the highest recall that counts, then recall@1, on a validation ranking; the smallest of equals."""

    def quality(weight: float) -> tuple[float, float]:
        found = measures(of.task, rerank(of.ranking, answers, "pointwise", weight))
        return found[f"recall@{of.task.counted}"], found["recall@1"]

    return max(WEIGHTS_TO_TRY, key=quality)  # the first of the best


def print_table(args: RerankArguments, tasks: Sequence[RetrievalTask], metrics: Mapping) -> None:
    """One line a task, in percent, before and after; what counts, R@k, stands beside the paper's."""
    print(f"\n{args.name}, {args.style}, top {depth_of(args)}: recall in percent, retrieved -> reranked")
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
    if args.image_data_path:
        return
    ks = {task.name: task.counted for task in tasks}
    before, after = (average(ks, {name: of[when] for name, of in metrics.items()}) for when in ("before", "after"))
    whole = args.name == DATA_NAME and args.split == "test" and len(tasks) == len(TASKS)
    paper = "   {} -> {}".format(*PAPER_AVERAGE[args.pool]) if whole else ""
    print(f"{f'average of {len(tasks)}':<20}{'':{16 * len(KS) + 8}}{_change(before, after)}   {paper}")


def _change(before: float, after: float) -> str:
    return f"{f'{100 * before:.1f} -> {100 * after:.1f}':>16}"


if __name__ == "__main__":
    run(main)
