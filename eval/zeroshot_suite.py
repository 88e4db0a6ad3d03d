"""The zero-shot suite: how each of its sets, see zeroshot_sets.py, is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lamra.common import upstream
from lamra.common.cli import note
from lamra.common.errors import UserError
from lamra.common.files import remove
from lamra.common.flags import require
from lamra.common.lock import folder_lock
from lamra.common.processes import is_first_process
from lamra.datasets.columns import SUFFIX
from lamra.datasets.rankings import write_by_query, write_ranking
from lamra.datasets.tasks import Items, RetrievalTask
from lamra.datasets.zeroshot.circo import write_submission
from lamra.eval.flags import DEPTH, output_folder
from lamra.eval.reporting.results import (
    MADE_BY,
    METRICS,
    Result,
    of_earlier_tasks,
    print_table,
    read_result,
    write_json,
)
from lamra.eval.zeroshot_sets import SETS, ZeroshotSet
from lamra.models.digests import file_sha256

SHARD_SIZE = 8192  # items that are encoded between two writes, and held in memory


def evaluate_set(name: str) -> None:
    """Measure a set of SETS: parse the command line, encode, print the table, write rankings and metrics.json.

    A task that the same model was measured on before, with the same files and settings, is not measured again.
    Embeddings are in files until all tasks are measured, and a run that was ended goes on with those that are there.
    """
    of = SETS[name]
    (args,) = upstream.parse(upstream.ZEROSHOT_SUITE, of.arguments)
    max_pixels = of.released_max_pixels if args.protocol == "released" and not args.library else None
    if max_pixels:
        why = f"{max_pixels}, or no such flag, as LamRA read {of.title} (--protocol clean reads as it was trained)"
        require(args.max_pixels in (None, max_pixels), "max_pixels", args.max_pixels, why)
        note(f"{of.title} (released): pictures of up to {max_pixels} pixels, as LamRA's numbers were measured")
    from lamra.eval.cache.embeddings import encode_to_shards  # torch, which --help does not wait for
    from lamra.eval.cache.manifest import content_sha256, digest, pictures_sha256
    from lamra.eval.cache.shards import Shards
    from lamra.eval.evaluate import evaluate
    from lamra.eval.inference import load_retriever, start
    from lamra.eval.metrics import chance, measures_by_query
    from lamra.eval.unreadable import Unreadable, without_missing

    state, folder = start(args), output_folder(args, name)
    with folder_lock(folder):
        tasks = whole = of.tasks(args)
        if args.missing == "skip" or not args.skip_unreadable:  # which takes missing files for unreadable ones
            tasks = without_missing(of.title, whole, args.missing)
        missing = {task.name: _missing(task, left) for task, left in zip(whole, tasks)}
        retriever = load_retriever(args, max_pixels=max_pixels)
        settings = {
            **retriever.provenance(args, args.protocol),
            "skip_unreadable": args.skip_unreadable,
        }
        made_of = {
            task.name: {
                "files": {file: file_sha256(path) for file, path in task.files.items()},
                "pictures": [pictures_sha256(items) for items in _parts(task)],
            }
            for task in tasks
        }
        searched = {**settings, **args.stored_as}
        metrics, made_by = of_earlier_tasks(folder, searched)
        found_of, earlier = metrics.get("tasks", {}), made_by.get("tasks", {})
        left = [
            task
            for task in tasks
            if earlier.get(task.name) != made_of[task.name]
            or task.name not in found_of
            or not all((folder / f"ranking_{task.name}{suffix}").is_file() for suffix in (".jsonl", SUFFIX))
            or (task.server and not submission_of(folder, task).is_file())
        ]
        if len(left) < len(tasks):
            note(f"{len(tasks) - len(left)} of {len(tasks)} tasks were measured before: delete {folder} to repeat")

        unreadable = Unreadable(args.skip_unreadable, retriever)
        embeddings = folder / "embeddings" / digest(json.dumps(settings))[:16]

        def embed(items: Items) -> Shards:
            made_of = {**settings, "content": content_sha256(items)}
            return encode_to_shards(retriever, items, embeddings / items.name, made_of, SHARD_SIZE)

        metrics = dict(metrics)
        for task, ranking, found in evaluate(
            unreadable.left_out_of(left), embed, depth=DEPTH, device=state.device, **args.stored_as
        ):  # on the first process alone
            if task.server:
                write_submission(submission_of(folder, task), task, ranking)
            else:
                by_query = measures_by_query(task, ranking)
                write_by_query(folder / f"queries_{task.name}.jsonl", task.queries, ranking, by_query)
            write_ranking(folder / f"ranking_{task.name}.jsonl", task.queries, task.gallery, ranking)
            found_of = found_of | {
                task.name: {
                    **found,
                    "queries": len(task.queries),
                    "counted": task.headline,
                    **({} if task.server else {"chance": chance(task)}),
                    "paper": task.reported and task.reported._asdict(),
                    **missing[task.name],
                }
            }
            earlier = earlier | {task.name: made_of[task.name]}
            metrics = {
                "set": of.title,
                "measure": of.measure,
                "protocol": args.protocol,
                **({"max_pixels": max_pixels} if max_pixels else {}),
                **args.stored_as,
                "tasks": found_of,
                **retriever.for_metrics,
                **mean_of(of, found_of),
                **unreadable.for_metrics(metrics),
            }
            # A task counts as measured once it is in both: a run that ends in between measures it again.
            write_json(folder / METRICS, metrics)
            write_json(folder / MADE_BY, {**searched, "tasks": earlier})
        if is_first_process():
            remove(embeddings.parent)
            print_results([metrics])
            print(f"written to {folder}/")
            for task in tasks:
                if task.server:
                    print(f"{task.name} is measured by {task.server}: send it {submission_of(folder, task)}")


def submission_of(folder: Path, task: RetrievalTask) -> Path:
    return folder / f"submission_{task.name}.json"


def _parts(task: RetrievalTask) -> list[Items]:
    return [task.queries, task.gallery]


def _missing(whole: RetrievalTask, left: RetrievalTask) -> dict[str, object]:
    """What metrics.json says of a task's items that --missing skip left out."""
    queries, candidates = len(whole.queries) - len(left.queries), len(whole.gallery) - len(left.gallery)
    return {"missing": {"queries": queries, "candidates": candidates}} if queries or candidates else {}


def mean_of(of: ZeroshotSet, found: Mapping[str, Mapping]) -> dict[str, dict]:
    """What metrics.json says of the mean over the set's tasks; nothing where one of them was not measured."""
    if of.paper_mean is None or len(found) < of.all_tasks:
        return {}
    value = sum(found[name][found[name]["counted"]] for name in sorted(found)) / len(found)
    published = sum(of_task["queries"] for of_task in found.values()) == of.all_queries
    return {"mean": {"value": value, "paper": of.paper_mean._asdict() if published else None}}


def read_set(folder: Path) -> Result:
    """The metrics.json of a set; raises UserError where there is none, or it is of something else."""
    result = read_result(folder / METRICS, "eval_zeroshot.sh writes it")
    if not {"set", "measure", "protocol", "tasks"} <= result.content.keys():
        raise UserError(f"{result.path} is not of a set of the zero-shot suite: eval_zeroshot.sh writes such files")
    return result


def print_results(results: Sequence[Mapping]) -> None:
    """Print the table of several sets' metrics.json, in percent, the paper's LamRA-Ret 7B in a column of its own."""

    def percent(value: float) -> str:
        return f"{100 * value:.1f}"

    def papers(found: Mapping) -> str:
        match found["paper"]:
            case {"retrieved": retrieved}:
                return f"{retrieved:.1f}"
            case {"at_1": recall}:
                return f"{recall:.1f} as LamRA"
        return "-"

    rows, notes = [], []
    for result in results:
        name, what = f"{result['set']} ({result['protocol']})", result["measure"]
        for task, found in result["tasks"].items():
            value = percent(found[found["counted"]]) if found["counted"] in found else "submission"
            rows.append([f"{name} {task}", what, str(found["queries"]), value, papers(found)])
            if missing := found.get("missing"):
                left_out = f"{missing['queries']} queries and {missing['candidates']} candidates"
                notes.append(f"{name} {task}: without {left_out}, because files are missing")
        if mean := result.get("mean"):
            rows.append([f"{name} mean", what, "", percent(mean["value"]), papers(mean)])
    print("\nzero-shot, in percent")
    print_table(["", "measure", "queries", "this model", "the paper's LamRA-Ret 7B"], rows)
    print("".join(f"{line}\n" for line in notes), end="")
