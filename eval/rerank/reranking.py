"""A reranker's pass over the rankings that a retriever wrote: what eval_rerank.py and eval_zeroshot_rerank.py share.

Answers are kept in <folder>/answers: a restarted run, or one with another weight, does not compute them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lamra.common.errors import UserError
from lamra.common.files import whole_file
from lamra.common.flags import FOLDER, Flags, flag
from lamra.common.processes import is_first_process
from lamra.datasets.columns import Ranking
from lamra.datasets.rankings import (
    ranking_files,
    ranking_of,
    read_ranking,
    write_by_query,
    write_ranking,
)
from lamra.datasets.tasks import RetrievalTask
from lamra.datasets.zeroshot.circo import write_submission
from lamra.eval.metrics import measures, measures_by_query
from lamra.eval.reporting.results import MADE_BY, METRICS, of_earlier_tasks, write_json
from lamra.eval.rerank.fusion import rerank
from lamra.eval.zeroshot_suite import submission_of
from lamra.models.digests import file_sha256

if TYPE_CHECKING:  # it imports torch, which --help does not wait for
    from lamra.eval.rerank.answers import Answers
    from lamra.eval.rerank.judge import Judge

STYLES = ("pointwise", "listwise")


@dataclass
class RankingFlags(Flags):
    rankings: str = flag("", "folder of rankings that an evaluation wrote, ours or upstream's", path=FOLDER)
    style: str = flag("pointwise", "how candidates are asked about", one_of=STYLES)
    depth: int | None = flag(None, "candidates to rerank; default: LamRA's", low=1)
    weight: float | None = flag(None, "of P(Yes), pointwise; default: LamRA's of the task", low=0)
    picture_memory: float = flag(4.0, "GiB of pictures' features that a process keeps", low=0)


class Retrieved(NamedTuple):
    """A task, the ranking that a retriever wrote for it, and the digests of the files that decide both."""

    task: RetrievalTask
    ranking: Ranking
    manifest: dict[str, str | int]


def read_retrieved(task: RetrievalTask, folder: str, upstream: str, *, by_position: bool = False) -> Retrieved:
    """The ranking of a task in a folder.

    Args:
        upstream, by_position: as ranking_of's and read_ranking's.

    Raises:
        UserError: as read_ranking; or a query ranks others than the candidates of its own, where it has any.
    """
    path = ranking_of(folder, task.name, upstream)
    ranking = read_ranking(path, task.queries, task.gallery, by_position=by_position)
    for query, candidates, _ in ranking if task.candidates is not None else ():
        if set(candidates) != set(task.candidates[query]):
            raise UserError(
                f"{path}: the query {task.queries.id(query)} ranks other candidates than its own in "
                f"{task.queries.path}: evaluate the retriever on these files"
            )
    manifest: dict[str, str | int] = {"ranking": "".join(map(file_sha256, ranking_files(path)))}
    return Retrieved(task, ranking, manifest | {name: file_sha256(file) for name, file in task.files.items()})


def require_depth(depth: int, rankings: str, retrieved: Sequence[Retrieved]) -> None:
    """Refuse to rerank more candidates than any query has."""
    deepest = max(len(ranked.candidates) for of in retrieved for ranked in of.ranking)
    if depth > deepest:
        raise UserError(
            f"--depth {depth}: the rankings in {rankings} have at most {deepest} candidates a query; give {deepest} "
            "or less"
        )


@dataclass
class Reranking:
    """A reranker, how it is asked, and where its answers and results go.

    Attributes:
        provenance: what decides an answer but for the ranking itself.
    """

    judge: Judge
    folder: Path
    style: str
    depth: int
    provenance: Mapping[str, Any]

    def answers(self, of: Retrieved, name: str) -> Answers:
        """The answer about each query of a ranking, kept under a name; all processes must call this."""
        from lamra.eval.rerank.answers import answers_of

        kept_in, manifest = self.folder / "answers" / name, {**self.provenance, **of.manifest}
        return answers_of(self.judge, of.task, of.ranking, self.style, self.depth, kept_in, manifest, of.task.name)

    def run(
        self, retrieved: Sequence[Retrieved], weight_of: Callable[[RetrievalTask], float], **made_by: Any
    ) -> dict[str, dict]:
        """Rerank, and write rankings, metrics.json and made_by.json; all processes must call this.

        Args:
            weight_of: task -> the weight of P(Yes).
            made_by: what else decides the numbers of every task.

        Returns:
            Of each task {"before": measures, "after": measures, "weight" (pointwise)}; on the first process with those
            of earlier runs that wrote into this folder.
        """
        made_by = {**self.provenance, "depth": self.depth, **made_by}
        metrics, earlier = of_earlier_tasks(self.folder, made_by) if is_first_process() else ({}, {})
        for of in retrieved:
            task, weight = of.task, weight_of(of.task)
            after = rerank(of.ranking, self.answers(of, task.name), self.style, weight)
            # A list's order leaves no tie, and its scores are those that stood in these places before.
            untied = task if self.style == "pointwise" else replace(task, tie_is_miss=False)
            metrics[task.name] = {"before": measures(task, of.ranking), "after": measures(untied, after)}
            metrics[task.name] |= {"weight": weight} if self.style == "pointwise" else {}
            if is_first_process():
                write_ranking(self.folder / f"ranking_{task.name}.jsonl", task.queries, task.gallery, after)
                if task.server:
                    write_submission(submission_of(self.folder, task), task, after)
                    continue
                by_query = measures_by_query(untied, after)
                write_by_query(self.folder / f"queries_{task.name}.jsonl", task.queries, after, by_query)
        if is_first_process():
            rankings = {**earlier.get("rankings", {}), **{of.task.name: of.manifest for of in retrieved}}
            tasks = {**earlier.get("tasks", {}), **{of.task.name: facts_of(of.task) for of in retrieved}}
            write_json(self.folder / MADE_BY, {**made_by, "rankings": rankings, "tasks": tasks})
            write_json(self.folder / METRICS, metrics)
        return metrics

    def tell_cost(self) -> None:
        """Print and write what a query cost on the first process, unless all answers were kept."""
        if not is_first_process():
            return
        if queries := self.judge.queries:
            seconds, tokens = self.judge.seconds / queries, self.judge.tokens / queries
            with whole_file(self.folder / "cost.json") as file:
                file.write(json.dumps({"seconds_per_query": seconds, "tokens_per_query": tokens}) + "\n")
            print(f"{seconds:.4f} s and {tokens:.0f} tokens a query, {queries} on this process")
        print(f"written to {self.folder}/")


def facts_of(task: RetrievalTask) -> dict[str, Any]:
    """What a table says of a task beside its measures."""
    reported = task.reported and task.reported._asdict()
    return {"queries": len(task.queries), "counted": task.headline, "paper": reported}
