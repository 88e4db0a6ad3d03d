"""M-BEIR's files to retrieval tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lamra.common.errors import UserError
from lamra.datasets.items import Item
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import Task, choose_tasks
from lamra.datasets.mbeir.qrels import read_qrels
from lamra.datasets.mbeir.queries import InstructedQueries
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows
from lamra.datasets.tasks import KS, Reported, RetrievalTask


class TaskFiles(NamedTuple):
    """The files of a task; `union` is the pool of all tasks together, which qrels may name too."""

    task: Task
    queries: Path
    pool: Path
    qrels: Path
    union: Path


def task_files(root: str | Path, names: str, split: str, pool: str) -> list[TaskFiles]:
    """M-BEIR's own files of some tasks, see layout.choose_tasks; `pool` is "local" or "global"."""
    root = Path(root)
    return [
        TaskFiles(
            task,
            root / task.queries(split),
            root / task.pool(split, pool),
            root / task.qrels(split),
            root / task.pool(split, "global"),
        )
        for task in choose_tasks(names)
    ]


class JoinedPools(Sequence[Item]):
    """Several pools as one, without a file of its own."""

    def __init__(self, parts: Iterable[Rows]):
        self.parts = list(parts)
        self.path, self.root = " and ".join(str(part.path) for part in self.parts), self.parts[0].root
        self.name = " and ".join(part.name for part in self.parts)
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _part(self, row: int) -> tuple[Rows, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.parts[number], row - int(self._starts[number])

    def __getitem__(self, row: int) -> Item:
        part, row = self._part(row)
        return part[row]

    def id(self, row: int) -> str:
        part, row = self._part(row)
        return part.id(row)

    def modality(self, row: int) -> str:
        part, row = self._part(row)
        return part.modality(row)

    def rows_of(self, keys: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n,) rows of integer keys; -1 where there is none."""
        found = np.full(len(keys), -1)
        for part, start in zip(self.parts, self._starts):
            rows = part.rows_of(keys)
            found = np.where((found < 0) & (rows >= 0), rows + start, found)
        return found

    find = Rows.find


def open_tasks(
    files: Sequence[TaskFiles],
    root: str | Path,
    instructions: str | Path,
    *,
    seed: int = 0,
    ks: Sequence[int] = KS,
    together: bool = False,
    with_paper: bool = False,
    tell: Callable[[str], None] = print,
) -> list[RetrievalTask]:
    """Tasks with their files opened and checked against each other, all but the pictures.

    Args:
        root: the folder that picture paths start from.
        instructions: query_instructions.tsv.
        seed: draws each query's instruction.
        together: all tasks search the pools of all.
        with_paper: the paper's numbers are of these tasks.
        tell: called with a sentence where qrels name candidates of another pool.

    Raises:
        UserError: a file is missing or malformed, or does not fit to another.
    """
    table = Instructions(instructions)
    pools: dict[Path, Rows | JoinedPools]
    pools = {path: Rows(path, root, CANDIDATE) for path in dict.fromkeys(of.pool for of in files)}
    if together:
        pools = dict.fromkeys(pools, JoinedPools(pools.values()))
    found = []
    for task, queries_path, pool_path, qrels, union in files:
        queries, pool = Rows(queries_path, root, QUERY), pools[pool_path]
        answers = read_qrels(qrels, queries, pool, union, tell)
        candidate = task.candidate or modality_of(queries, pool, answers)
        paper = None
        if with_paper and task.paper is not None:
            paper = Reported("the paper's", task.paper, task.paper_reranked)
        found.append(
            RetrievalTask(
                task.name,
                InstructedQueries(queries, table, candidate, seed),
                pool,
                answers,
                ks=ks,
                counted=task.k,
                weight=task.weight,
                reported=paper,
                files={"pool": pool_path, "queries": queries_path, "instructions": table.path},
            )
        )
    return found


def modality_of(queries: Rows, pool: Rows | JoinedPools, answers: list[list[int]]) -> str:
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
