"""A retrieval task: queries, the gallery that they search, and what counts. Every evaluation runs on these."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from lamra.common.errors import UserError
from lamra.datasets.items import Indexed, Item

KS = (1, 5, 10)


class FileItems(Indexed[Item], Protocol):
    """The items of a file. Where an attribute `drawn_by` (name -> a file or a value) says so, more decides them."""

    @property
    def name(self) -> str:
        """What progress bars, and the folder of their embeddings, call them."""

    @property
    def path(self) -> Path | str: ...

    def id(self, row: int) -> str: ...


class Items(FileItems, Protocol):
    """Items that can be found by their id."""

    def find(self, ids: Sequence[str]) -> list[int]:
        """The row of each id, -1 where there is none."""

    def without(self, rows: np.ndarray) -> Items:
        """The same as if some items were not there; `rows` (N,) is true for these."""


class ItemList(list[Item]):
    """Items in memory; of equal ids the last is found."""

    def __init__(self, items: Collection[Item], name: str, path: Path | str):
        super().__init__(items)
        self.name, self.path = name, path

    def id(self, row: int) -> str:
        return self[row].id

    @cached_property
    def _row_of(self) -> dict[str, int]:
        """Made once: a ranking of 40,000 queries calls `find` for each."""
        return {item.id: row for row, item in enumerate(self)}

    def find(self, ids: Sequence[str]) -> list[int]:
        return [self._row_of.get(identifier, -1) for identifier in ids]

    def without(self, rows: np.ndarray) -> ItemList:
        return ItemList([item for item, lost in zip(self, rows) if not lost], self.name, self.path)


class Reported(NamedTuple):
    """The recall that counts, in percent, as a paper reports it: by a retriever, and after a reranker."""

    retrieved: float
    reranked: float


class ReportedAsLamRA(NamedTuple):
    """Recall in percent, as the paper reports it of videos for "LamRA": with its reranker or without, is not said."""

    at_1: float
    at_5: float
    at_10: float


@dataclass(frozen=True, eq=False)
class RetrievalTask:
    """Queries that search a gallery. Rows are positions in `queries` or in `gallery`, from 0.

    Attributes:
        name: what its files and metrics are called.
        queries, gallery: tasks that share a gallery, or any Items, hold the same object: it is embedded once.
        answers: for each query the rows of the gallery that answer it; a query without answer is a miss.
        candidates: for each query the rows of a gallery of its own, all of which are ranked; None: all search
            everything. A picture that stands twice in a query's gallery is two rows.
        excluded: for each query rows that are left out of its ranking, such as pictures that the query shows.
        ks: recall is measured at each.
        counted: the k that counts: in an average, and beside what others report.
        measure: what counts at it. "map", the mean average precision, looks at all answers, and recall then at the
            first alone, as CIRCO's do.
        aspects: for each query the kinds of query that it is of, each of which has a mean average precision, too.
        server: the address of a judge of rankings who has not published the answers: nothing is measured.
        tie_is_miss: an answer counts as below every wrong candidate of the same score; False leaves ties to the lower
            row. Only where queries have `candidates`: a ranking that is cut does not show all that tie.
        weight: of a reranker's P(Yes) beside the retriever's score.
        reported: the paper's numbers of this task.
        rerank_queries: the queries as a reranker is shown them, where its words are others; None: the same.
        rerank_gallery: the gallery as a reranker is shown it, where it sees fewer frames of videos; None: the same.
        files: the files that decide its items; a reranker's answers remember their digests.

    Raises:
        ValueError: the parts do not fit together.
    """

    name: str
    queries: Items
    gallery: Items
    answers: Sequence[Sequence[int]]
    candidates: Sequence[Sequence[int]] | None = None
    excluded: Sequence[Collection[int]] | None = None
    ks: Sequence[int] = KS
    counted: int = 1
    measure: Literal["recall", "map"] = "recall"
    aspects: Sequence[Collection[str]] | None = None
    server: str | None = None
    tie_is_miss: bool = False
    weight: float = 1.0
    reported: Reported | ReportedAsLamRA | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    rerank_queries: Items | None = None
    rerank_gallery: Items | None = None

    def __post_init__(self) -> None:
        for name in ("answers", "candidates", "excluded", "aspects"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != len(self.queries):
                raise ValueError(f"{self.name}: {name} of {len(rows)} queries, and there are {len(self.queries)}")
            if name != "aspects" and not all(
                0 <= row < len(self.gallery) for of_query in rows or () for row in of_query
            ):
                raise ValueError(f"{self.name}: {name} beyond the {len(self.gallery)} rows of the gallery")
        if self.rerank_queries is not None and len(self.rerank_queries) != len(self.queries):
            raise ValueError(f"{self.name}: {len(self.rerank_queries)} rerank_queries of {len(self.queries)} queries")
        if self.rerank_gallery is not None and len(self.rerank_gallery) != len(self.gallery):
            raise ValueError(
                f"{self.name}: {len(self.rerank_gallery)} in rerank_gallery, {len(self.gallery)} in gallery"
            )
        if self.candidates is not None and self.excluded is not None:
            raise ValueError(f"{self.name}: queries with candidates of their own exclude by not naming")
        if any(len(set(rows)) < len(rows) for rows in self.candidates or ()):
            raise ValueError(f"{self.name}: a query names a candidate twice")
        if self.tie_is_miss and self.candidates is None:
            raise ValueError(f"{self.name}: only ties among the candidates of a query's own are all seen")
        if self.counted not in self.ks:
            raise ValueError(f"{self.name}: {self.headline} counts and is not measured ({self.ks})")
        if self.server and any(map(len, self.answers)):
            raise ValueError(f"{self.name}: its answers are known, and a server is to judge")

    @property
    def headline(self) -> str:
        """The name of the measure that counts, "recall@1"."""
        return f"{self.measure}@{self.counted}"

    def without(self, queries: np.ndarray, gallery: np.ndarray, kept_gallery: Items) -> RetrievalTask:
        """The task as if some rows were not there. A query that loses all its answers with them goes, too.

        The paper has no numbers of such a task.

        Args:
            queries, gallery: (Q,) and (N,), true for these rows.
            kept_gallery: the gallery without them, the same object for tasks that share it.

        Raises:
            UserError: a server is to judge, which wants all queries.
        """
        if self.server and queries.any():
            raise UserError(
                f"{self.name}: {queries.sum()} of {len(queries)} queries cannot be read, first "
                f"{self.queries.id(int(queries.argmax()))}: {self.server} judges all or none, repair their pictures"
            )
        lost = queries | np.array([len(rows) > 0 and all(gallery[row] for row in rows) for rows in self.answers])
        new_row = np.cumsum(~gallery) - 1  # (N,)

        def kept(of_queries: Sequence[Collection[int]] | None) -> list[list[int]] | None:
            if of_queries is None:
                return None
            left = (rows for rows, query_is_lost in zip(of_queries, lost) if not query_is_lost)
            return [[int(new_row[row]) for row in rows if not gallery[row]] for rows in left]

        fewer: dict[str, Any] = {name: kept(getattr(self, name)) for name in ("answers", "candidates", "excluded")}
        fewer["aspects"] = self.aspects and [of_query for of_query, gone in zip(self.aspects, lost) if not gone]
        fewer["rerank_queries"] = None if self.rerank_queries is None else self.rerank_queries.without(lost)
        fewer["rerank_gallery"] = None if self.rerank_gallery is None else self.rerank_gallery.without(gallery)
        if lost.any() or gallery.any():
            fewer["reported"] = None
        return replace(self, queries=self.queries.without(lost), gallery=kept_gallery, **fewer)
