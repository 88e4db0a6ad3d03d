"""Asking LamRA-Rank about candidates of training queries; its answers are kept in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamra.datasets.rankings import RankedQuery
from lamra.datasets.tasks import RetrievalTask
from lamra.eval.cache.manifest import digest, provenance_of
from lamra.eval.flags import RetrieverArguments
from lamra.eval.mining import TrainingQueries
from lamra.eval.rerank.answers import Answers, answers_of
from lamra.eval.rerank.judge import Judge, load_judge


@dataclass
class Asking:
    """A reranker, the queries that it is asked about, and where its answers go.

    Attributes:
        provenance: what decides an answer but for the query and its candidates.
    """

    judge: Judge
    queries: TrainingQueries
    folder: Path
    provenance: dict[str, Any]

    @classmethod
    def of(cls, args: RetrieverArguments, queries: TrainingQueries, folder: Path, files: dict[str, str]) -> Asking:
        """The reranker that the flags choose.

        Args:
            files: name of each file of queries and candidates -> its digest.
        """
        judge = load_judge(args)
        provenance = {**provenance_of(args, judge.settings, judge.model), "rank_style": judge.settings.rank_style}
        return cls(judge, queries, folder, {**provenance, "files": files, **queries.drawn_by})

    def about(self, ranking: Sequence[RankedQuery], style: str, name: str) -> Answers:
        """Judge.answer about all candidates of each query, kept under a name. All processes must call this.

        Raises:
            UserError: as answers_of, also where answers of that name are about other candidates.
        """
        pairs = self.queries.pairs
        unknown: list[list[int]] = [[]] * len(self.queries)
        # Nobody looks for these queries by id, or leaves some out: they need not have what Items have for that.
        task = RetrievalTask("training", self.queries, pairs.pool, unknown)  # type: ignore[arg-type]
        depth = max((len(ranked.candidates) for ranked in ranking), default=0)
        asked = digest(repr([(ranked.query, ranked.candidates) for ranked in ranking]))
        manifest = {**self.provenance, "ranking": asked}
        return answers_of(self.judge, task, ranking, style, depth, self.folder / name, manifest, f"answers {name}")
