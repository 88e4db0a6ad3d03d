"""Recall before and after a reranker, on M-BEIR or on captioned pictures. Started from scripts/eval/rerank_*.sh.

It reads the rankings that an evaluation of a retriever wrote. The reranker's answers are kept in <output_dir>/answers:
a restarted run, or one with another weight, does not ask again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import PartialState

from lamra.collators.messages import INSTRUCTION_IMAGE_TO_TEXT, INSTRUCTION_TEXT_TO_IMAGE
from lamra.common.cli import parse, require, run
from lamra.common.errors import UserError
from lamra.common.files import sha256, whole_file
from lamra.common.lock import folder_lock
from lamra.common.processes import start_processes
from lamra.datasets.caption import load_captioned_images
from lamra.datasets.items import Item
from lamra.datasets.mbeir.layout import (
    DATA_PATH,
    INSTRUCTIONS,
    PAPER_AVERAGE,
    PAPER_AVERAGE_RERANKED,
    TASKS,
    choose_tasks,
)
from lamra.datasets.mbeir.rows import Rows, id_key
from lamra.datasets.rerank import ranking_files, ranking_of
from lamra.eval.eval_mbeir import DATA_NAME, TaskData, average, open_tasks
from lamra.eval.inference import RetrieverArguments
from lamra.eval.judge import STYLES, Judge, RankingTask, judge_ranking, load_judge, read_ranking, reranked
from lamra.eval.metrics import recall_at_k
from lamra.eval.reporting.files import write_metrics, write_provenance, write_ranking
from lamra.eval.reporting.tables import KS
from lamra.eval.shards import made_by
from lamra.eval.zeroshot import output_folder

DEPTHS = {"pointwise": 50, "listwise": 5}  # LamRA's on M-BEIR
DEPTH_ZEROSHOT = 10
# Weight of P(Yes) where it is not 1: LamRA's for COCO.
WEIGHTS = {"mscoco_task0_test": 0.5, "mscoco_task3_test": 0.1}
WEIGHTS_COCO = {"image_retrieval": 0.5, "text_retrieval": 0.1}
UPSTREAM_FLICKR = {"image_retrieval": "flickr_t2i", "text_retrieval": "flickr_i2t"}
WEIGHTS_TO_TRY = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
# R@1 of LamRA-Ret and with LamRA-Rank on Flickr30K, in percent (arXiv 2412.01720).
PAPER_FLICKR = {"image_retrieval": (82.8, 88.1), "text_retrieval": (92.7, 97.6)}


@dataclass
class RerankArguments(RetrieverArguments):
    rankings: str = field(
        default="", metadata={"help": "folder of rankings that an evaluation wrote, ours or upstream's"}
    )
    style: str = field(default="pointwise", metadata={"help": "pointwise or listwise"})
    depth: int | None = field(default=None, metadata={"help": "candidates to rerank; default: LamRA's"})
    weight: float | None = field(default=None, metadata={"help": "of P(Yes), pointwise; default: LamRA's of the task"})
    tune_weight: str | None = field(default=None, metadata={"help": "rankings of M-BEIR's val split to choose it on"})
    data_path: str = field(default=DATA_PATH, metadata={"help": "M-BEIR's folder"})
    pool: str = field(default="local", metadata={"help": "the pool that the rankings are of: local or global"})
    tasks: str = field(default="all", metadata={"help": "all, or names separated by commas"})
    split: str = field(default="test", metadata={"help": "test or val"})
    instructions: str = field(default=INSTRUCTIONS, metadata={"help": "below data_path"})
    seed: int = field(default=0, metadata={"help": "draws each query's instruction"})
    picture_memory: float = field(default=4.0, metadata={"help": "GiB of pictures' features that a process keeps"})
    image_data_path: str | None = field(default=None, metadata={"help": "captioned pictures instead of M-BEIR"})
    text_data_path: str | None = field(default=None, metadata={"help": "their captions"})
    data_name: str | None = field(default=None, metadata={"help": "what to call data; Flickr30K and COCO are known"})
    output_dir: str | None = field(default=None, metadata={"help": "default: results/<model>/<rankings' folder>"})

    def __post_init__(self):
        super().__post_init__()
        require(bool(self.rankings), "rankings", self.rankings, "a folder of ranking_*.jsonl")
        require(self.style in STYLES, "style", self.style, " or ".join(STYLES))
        require(self.depth is None or self.depth > 0, "depth", self.depth, "1 or more")
        require(self.weight is None or self.weight >= 0, "weight", self.weight, "0 or more")
        require(self.picture_memory >= 0, "picture_memory", self.picture_memory, "0 or more")
        require(self.pool in PAPER_AVERAGE, "pool", self.pool, " or ".join(PAPER_AVERAGE))
        require(self.split in ("test", "val"), "split", self.split, "test or val")
        if bool(self.image_data_path) != bool(self.text_data_path):
            raise UserError("--image_data_path and --text_data_path belong together: give both")
        if self.tune_weight:
            pointwise = self.style == "pointwise" and self.weight is None and not self.image_data_path
            require(pointwise, "tune_weight", self.tune_weight, "--style pointwise on M-BEIR, and no --weight")
        choose_tasks(self.tasks)

    @property
    def name(self) -> str:
        return self.data_name or (DATA_NAME if not self.image_data_path else "captioned pictures")


@dataclass
class Opened:
    """A ranking with what is known about its task: k counts, the weight is the default, the paper's R@k in percent."""

    name: str
    ranking: RankingTask
    manifest: dict
    k: int
    weight: float
    paper: tuple[float, float] | None


def main() -> None:
    (args,) = parse(RerankArguments)
    state = start_processes()
    folder = output_folder(args, Path(args.rankings).name) / args.style
    with folder_lock(folder):
        _evaluate(args, folder, state)


def _evaluate(args: RerankArguments, folder: Path, state: PartialState) -> None:
    with state.main_process_first():  # it writes the indexes
        opened = open_rankings(args)
        validation = open_rankings(replace(args, rankings=args.tune_weight, split="val")) if args.tune_weight else []
    judge = load_judge(args, picture_memory=args.picture_memory)
    asked_by = {**made_by(args, judge.settings, judge.model), "rank_style": judge.settings.rank_style}

    weights = {}
    for one in validation:
        answers = ask(args, judge, one, folder / "answers" / f"val_{one.name}", asked_by)
        weights[one.name] = best_weight(one, answers)
    metrics = {}
    for one in opened:
        answers = ask(args, judge, one, folder / "answers" / one.name, asked_by)
        weight = weights.get(one.name, one.weight if args.weight is None else args.weight)
        after = rerank(one.ranking, answers, args.style, weight)
        metrics[one.name] = {"before": recalls(one.ranking), "after": recalls(after)}
        metrics[one.name] |= {"weight": weight} if args.style == "pointwise" else {}
        if state.is_main_process:
            save(folder / f"ranking_{one.name}.jsonl", after)
    if state.is_main_process:
        write_provenance(folder, {**asked_by, "rankings": {one.name: one.manifest for one in opened}})
        write_metrics(folder, metrics)
        show(args, opened, metrics)
        if judge.queries:
            cost = {
                "seconds_per_query": judge.seconds / judge.queries,
                "tokens_per_query": judge.tokens / judge.queries,
            }
            with whole_file(folder / "cost.json") as file:
                file.write(json.dumps(cost) + "\n")
            print("{:.4f} s and {:.0f} tokens a query,".format(*cost.values()), f"{judge.queries} on this process")
        print(f"written to {folder}/")


def open_rankings(args: RerankArguments) -> list[Opened]:
    """Everything but the pictures, so that a mistake in the files is told before a model is loaded."""
    opened = captioned_rankings(args) if args.image_data_path else mbeir_rankings(args)
    deepest = max(len(found) for one in opened for found in one.ranking.found)
    if depth_of(args) > deepest:
        raise UserError(
            f"--depth {depth_of(args)}: the rankings in {args.rankings} have at most {deepest} candidates a query; "
            f"give {deepest} or less"
        )
    return opened


def depth_of(args: RerankArguments) -> int:
    default = min(DEPTHS[args.style], DEPTH_ZEROSHOT if args.image_data_path else DEPTHS[args.style])
    return args.depth or default


def mbeir_rankings(args: RerankArguments) -> list[Opened]:
    opened = []
    for data in open_tasks(args):
        path = ranking_of(args.rankings, data.task.name, data.task.name.removesuffix("_test"))
        of_paper = (data.task.paper, data.task.paper_reranked)
        known = args.name == DATA_NAME and args.split == "test" and args.pool == "local"
        ranking = mbeir_ranking(path, data)
        manifest = {"ranking": _ranking_sha256(path), "pool": sha256(data.pool.path)}
        manifest |= {"queries": sha256(data.queries.path), "instructions": sha256(data.instructed.instructions.path)}
        weight = WEIGHTS.get(data.task.name, 1.0)
        manifest["seed"] = args.seed
        opened.append(Opened(data.task.name, ranking, manifest, data.task.k, weight, of_paper if known else None))
    return opened


def _ranking_sha256(path: Path) -> str:
    return "".join(map(sha256, ranking_files(path)))


def mbeir_ranking(path: Path, data: TaskData) -> RankingTask:
    """A ranking of all of a task's queries, its ids as rows.

    Raises:
        UserError: as read_ranking, or the ranking names a query or candidate that is not there.
    """
    ranking = read_ranking(path, [data.queries.id(row) for row in range(len(data.queries))])

    def rows_of(ids: list[str], rows: Rows) -> list[int]:
        try:
            found = rows.rows_of([id_key(identifier) for identifier in ids])
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        for identifier, row in zip(ids, found):
            if row < 0:
                raise UserError(f"{path} names {rows.name_of(id_key(identifier))}, which is not in {rows.path}")
        return found.tolist()

    asked = rows_of(list(ranking), data.queries)
    found = [rows_of(dids, data.pool) for dids, _ in ranking.values()]
    scores = [scores for _, scores in ranking.values()]
    return RankingTask(data.instructed, data.pool, asked, found, scores, [data.answers[row] for row in asked])


def captioned_rankings(args: RerankArguments) -> list[Opened]:
    """Both directions of Flickr30K, COCO or one's own pictures; queries have their instruction, as LamRA's have."""
    data = load_captioned_images(args.image_data_path, args.text_data_path)
    captions: list[list[int]] = [[] for _ in data.images]
    for caption, image in enumerate(data.image_of_text):
        captions[image].append(caption)
    opened = []
    for name, queries, candidates, answers, instruction in (
        ("image_retrieval", data.texts, data.images, [[i] for i in data.image_of_text], INSTRUCTION_TEXT_TO_IMAGE),
        ("text_retrieval", data.images, data.texts, captions, INSTRUCTION_IMAGE_TO_TEXT),
    ):
        path = ranking_of(args.rankings, name, UPSTREAM_FLICKR[name])
        ranking = read_ranking(path, list(_place_of(path, queries)))
        asked = _places(path, "query", list(ranking), queries, args.text_data_path)
        found = [_places(path, "candidate", dids, candidates, args.text_data_path) for dids, _ in ranking.values()]
        instructed = [replace(item, instruction=instruction) for item in queries]
        scores = [scores for _, scores in ranking.values()]
        task = RankingTask(instructed, candidates, asked, found, scores, [answers[place] for place in asked])
        manifest = {"ranking": _ranking_sha256(path), "captions": sha256(args.text_data_path)}
        weight = WEIGHTS_COCO[name] if args.name == "COCO" else 1.0
        opened.append(Opened(name, task, manifest, 1, weight, PAPER_FLICKR[name] if args.name == "Flickr30K" else None))
    return opened


def _place_of(path: Path, items: list[Item]) -> dict[str, int]:
    """What a ranking calls items -> their places; upstream's calls them by these."""
    return {item.id if path.suffix == ".jsonl" else str(place): place for place, item in enumerate(items)}


def _places(path: Path, kind: str, ids: list[str], items: list[Item], source: str) -> list[int]:
    place_of = _place_of(path, items)
    unknown = [identifier for identifier in ids if identifier not in place_of]
    if unknown:
        raise UserError(f"{path} names the {kind} {unknown[0]}, which is not in {source}")
    return [place_of[identifier] for identifier in ids]


def ask(args: RerankArguments, judge: Judge, one: Opened, folder: Path, asked_by: dict) -> list[list]:
    return judge_ranking(judge, one.ranking, args.style, depth_of(args), folder, asked_by | one.manifest, one.name)


def rerank(ranking: RankingTask, answers: list[list], style: str, weight: float) -> RankingTask:
    """The ranking that follows from the answers."""
    new = [reranked(scores, answer, style, weight) for scores, answer in zip(ranking.scores, answers)]
    found = [[places[i] for i in order] for places, (order, _) in zip(ranking.found, new)]
    return replace(ranking, found=found, scores=[scores for _, scores in new])


def recalls(ranking: RankingTask, ks: Sequence[int] = KS) -> dict[str, float]:
    """Recall at each of `ks`; a k beyond the rankings counts all of them.

    Raises:
        UserError: the ranking is not of each query once.
    """
    if sorted(ranking.asked) != list(range(len(ranking.queries))):
        raise UserError(
            f"the ranking is of {len(set(ranking.asked))} of the {len(ranking.queries)} queries: recall is over all of "
            "them; write the rankings again"
        )
    longest = max(map(len, ranking.found))
    table = torch.tensor([found + [-1] * (longest - len(found)) for found in ranking.found])  # (Q, longest)
    return {f"recall@{k}": recall_at_k(table, ranking.answers, min(k, longest)) for k in ks}


def best_weight(one: Opened, answers: list[list]) -> float:
    """The weight of highest recall@k, then recall@1, on a validation ranking; the smallest of equals."""

    def quality(weight: float) -> tuple[float, float]:
        found = recalls(rerank(one.ranking, answers, "pointwise", weight))
        return found[f"recall@{one.k}"], found["recall@1"]

    return max(WEIGHTS_TO_TRY, key=quality)  # the first of the best


def save(path: Path, ranking: RankingTask) -> None:
    queries, candidates = ranking.queries, ranking.candidates
    rows = zip(ranking.asked, ranking.found, ranking.scores)
    write_ranking(path, ((queries[q].id, [candidates[c].id for c in found], score) for q, found, score in rows))


def show(args: RerankArguments, opened: list[Opened], metrics: dict) -> None:
    """One line a task, in percent, before and after; what counts, R@k, stands beside the paper's."""
    print(f"\n{args.name}, {args.style}, top {depth_of(args)}: recall in percent, retrieved -> reranked")
    paper = any(one.paper for one in opened)
    header = f"{'':<20}" + "".join(f"{f'R@{k}':>16}" for k in KS) + f"{'weight':>8}{'counted':>20}"
    print(header + ("   the paper's 7B" if paper else ""))
    for one in opened:
        before, after = metrics[one.name]["before"], metrics[one.name]["after"]
        cells = "".join(_change(before[f"recall@{k}"], after[f"recall@{k}"], 16) for k in KS)
        weight = metrics[one.name].get("weight", "-")
        counted = _change(before[f"recall@{one.k}"], after[f"recall@{one.k}"], 16) + f" @{one.k:<2}"
        shown = "   {:.1f} -> {:.1f}".format(*one.paper) if one.paper else ""
        print(f"{one.name:<20}{cells}{weight:>8}{counted}{shown}")
    if args.image_data_path:
        return
    before, after = (average({name: metrics[name][when] for name in metrics}) for when in ("before", "after"))
    whole = args.name == DATA_NAME and args.split == "test" and len(opened) == len(TASKS)
    shown = f"   {PAPER_AVERAGE[args.pool]} -> {PAPER_AVERAGE_RERANKED[args.pool]}" if whole else ""
    print(f"{f'average of {len(opened)}':<20}{'':{16 * len(KS) + 8}}{_change(before, after, 16)}   {shown}")


def _change(before: float, after: float, width: int) -> str:
    return f"{f'{100 * before:.1f} -> {100 * after:.1f}':>{width}}"


if __name__ == "__main__":
    run(main)
