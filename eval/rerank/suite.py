"""Reranking of the zero-shot suite, of Flickr30K and COCO, and of captioned pictures that are your own.

A reranker reads the same prompts whatever protocol a set was retrieved with: instructed queries and bare candidates.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from itertools import pairwise
from pathlib import Path

from lamra.common import upstream
from lamra.common.flags import FILE_OR_FOLDER, FOLDER, Flags, flag, require
from lamra.common.lock import folder_lock
from lamra.common.processes import first_process_first, is_first_process
from lamra.datasets.caption import captioned_tasks, load_captioned_images
from lamra.datasets.tasks import RetrievalTask
from lamra.eval.flags import output_folder
from lamra.eval.reporting.results import AGAIN, MADE_BY, METRICS, print_table, read_result
from lamra.eval.rerank.reranking import RankingFlags, Reranking, Retrieved, read_retrieved, require_depth
from lamra.eval.zeroshot_sets import SETS, SuiteArguments, ZeroshotSet
from lamra.eval.zeroshot_suite import mean_of

DEPTHS = {"pointwise": 10, "listwise": 5}
UPSTREAM = {"image_retrieval": "flickr_t2i", "text_retrieval": "flickr_i2t"}


@dataclass
class CaptionArguments(SuiteArguments):
    image_data_path: str = flag("", "folder of pictures", path=FOLDER)
    text_data_path: str = flag("", "their captions, in one of the layouts of docs/own_data.md", path=FILE_OR_FOLDER)


def _captioned(title: str) -> ZeroshotSet:
    def tasks(args: CaptionArguments) -> list[RetrievalTask]:
        there = not args.skip_unreadable and args.missing == "stop"
        data = load_captioned_images(args.image_data_path, args.text_data_path, pictures_there=there)
        return captioned_tasks(data, title, args.text_data_path, args.protocol)

    return ZeroshotSet(title, "R@1", CaptionArguments, tasks)


# The names are of folders below results/<model>/, but for "captions".
RERANKED = {
    "flickr30k": _captioned("Flickr30K"),
    "coco": _captioned("COCO"),
    "captions": _captioned("captioned pictures"),
    **SETS,
}


@dataclass
class SetFlags(Flags):
    set: str = flag(MISSING, "the data, whose own flags --set NAME --help lists", one_of=RERANKED)


def rerank_set() -> None:
    """Parse the command line, rerank what was retrieved on a set, print the table, write rankings and metrics.json."""
    words = [part for word in sys.argv[1:] for part in word.split("=", 1)]
    given = dict(pairwise(words))
    name, library = given.get("--set"), given.get("--library")  # which flags there are depends on the set
    require(library is None, "library", library, "no such flag: a reranker is one of LamRA's")
    require(name is None or name in RERANKED, "set", name, " or ".join(RERANKED))
    arguments = SuiteArguments if name is None else RERANKED[name].arguments
    args, chosen, how = upstream.parse(upstream.ZEROSHOT_RERANKING, arguments, SetFlags, RankingFlags)
    of, depth = RERANKED[chosen.set], how.depth or DEPTHS[how.style]
    from lamra.eval.cache.manifest import provenance_of  # torch and transformers, which --help does not wait for
    from lamra.eval.inference import start
    from lamra.eval.rerank.judge import load_judge
    from lamra.eval.unreadable import Unreadable, without_missing

    start(args)
    folder = output_folder(args, Path(how.rankings).name) / how.style
    retriever = Path(how.rankings, METRICS)
    captions = of.arguments is CaptionArguments
    protocol = read_result(retriever, AGAIN).content.get("protocol") if retriever.exists() else None
    args.protocol = "clean"
    with folder_lock(folder):
        with first_process_first("the first process unpacks the data set's shards"):
            tasks = of.tasks(args)
        if args.missing == "skip" or not args.skip_unreadable:  # which takes missing files for unreadable ones
            tasks = without_missing(of.title, tasks, args.missing)
        retrieved = [] if args.skip_unreadable else open_rankings(tasks, how, captions)
        judge = load_judge(args, picture_memory=how.picture_memory)
        unreadable = Unreadable(args.skip_unreadable, judge)
        if args.skip_unreadable:
            retrieved = open_rankings(unreadable.left_out_of(tasks), how, captions)
        provenance = {**provenance_of(args, judge.settings, judge.model), "rank_style": judge.settings.rank_style}
        reranking = Reranking(judge, folder, how.style, depth, provenance)
        reranking.run(
            retrieved,
            lambda task: task.weight if how.weight is None else how.weight,
            set=chosen.set,
            protocol=protocol,
            missing=args.missing,
            **unreadable.for_metrics(),
        )
        if is_first_process():
            print_reranked([folder])
        reranking.tell_cost()


def open_rankings(tasks: Sequence[RetrievalTask], how: RankingFlags, captions: bool) -> list[Retrieved]:
    """The rankings of tasks; fewer candidates than LamRA reranks are all that a small gallery has.

    Args:
        captions: upstream's files are those of Flickr30K, which name captioned pictures and captions by their rows.

    Raises:
        UserError: as read_retrieved; or --depth is more than any query has.
    """
    retrieved = [
        read_retrieved(task, how.rankings, UPSTREAM[task.name] if captions else task.name, by_position=captions)
        for task in tasks
    ]
    if how.depth is not None:
        require_depth(how.depth, how.rankings, retrieved)
    return retrieved


def print_reranked(folders: Sequence[Path]) -> None:
    """Print the table of what was written into several folders, in percent, the paper's 7B in columns of its own.

    Raises:
        UserError: a folder holds no results of a set.
    """
    rows = []
    for folder in folders:
        metrics, made_by = (read_result(folder / name, AGAIN).content for name in (METRICS, MADE_BY))
        of, facts = RERANKED[made_by["set"]], made_by["tasks"]
        title = of.title + (f" ({made_by['protocol']})" if made_by["protocol"] else "")
        before, after = ({name: {**what, **metrics[name][when]} for name, what in facts.items()}
                         for when in ("before", "after"))  # fmt: skip
        lines = []
        for name, what in facts.items():
            of_both = (found[name].get(what["counted"]) for found in (before, after))
            lines.append((name, what["queries"], metrics[name].get("weight", "-"), what["paper"], *of_both))
        if mean := mean_of(of, before).get("mean"):
            lines.append(("mean", "", "", mean["paper"], mean["value"], mean_of(of, after)["mean"]["value"]))
        for name, queries, weight, paper, *values in lines:
            numbers = ["submission" if value is None else f"{100 * value:.1f}" for value in values]  # a server has it
            # What the paper says of videos alone is "LamRA".
            papers = [paper.get("retrieved"), paper.get("reranked", paper.get("at_1"))] if paper else [None, None]
            numbers += ["-" if value is None else f"{value:.1f}" for value in papers]
            rows.append([f"{title} {name}", of.measure, str(queries), str(weight), *numbers])
    print("\nzero-shot, in percent, the first candidates reranked")
    heads = ["", "measure", "queries", "weight", "retrieved", "reranked"]
    print_table([*heads, "the paper's LamRA-Ret 7B", "the paper's LamRA 7B"], rows)
