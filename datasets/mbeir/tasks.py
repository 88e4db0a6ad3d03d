"""M-BEIR's files to retrieval tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lamra.common.errors import UserError
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import TaskFiles
from lamra.datasets.mbeir.qrels import read_qrels
from lamra.datasets.mbeir.queries import InstructedQueries
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows
from lamra.datasets.tasks import KS, RetrievalTask


class JoinedPools(Rows):
    """Several pools as one, without a file of its own; of equal ids the first is found."""

    def __init__(self, parts: Sequence[Rows]):
        self.parts, self.root, self.fields = parts, parts[0].root, CANDIDATE
        self.path = Path(" and ".join(str(part.path) for part in parts))
        self.keys = np.concatenate([part.keys for part in parts])
        self.modalities = np.concatenate([part.modalities for part in parts])
        self._by_key = np.argsort(self.keys, kind="stable")
        self._starts = np.cumsum([0, *map(len, parts)])

    def record(self, row: int) -> dict:
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.parts[part].record(row - int(self._starts[part]))


def open_tasks(
    files: Sequence[TaskFiles],
    root: str | Path,
    instructions: str | Path,
    *,
    seed: int = 0,
    ks: Sequence[int] = KS,
    together: bool = False,
    with_paper: bool = False,
) -> list[RetrievalTask]:
    """Tasks with their files opened and checked against each other, all but the pictures.

    Args:
        root: the folder that picture paths start from.
        instructions: query_instructions.tsv.
        seed: draws each query's instruction.
        together: all tasks search the pools of all.
        with_paper: the paper's numbers are of these tasks.

    Raises:
        UserError: a file is missing or malformed, or does not fit to another.
    """
    table = Instructions(instructions)
    pools = {path: Rows(path, root, CANDIDATE) for path in dict.fromkeys(of.pool for of in files)}
    if together:
        pools = dict.fromkeys(pools, JoinedPools([*pools.values()]))
    found = []
    for task, queries_path, pool_path, qrels, union in files:
        queries, pool = Rows(queries_path, root, QUERY), pools[pool_path]
        answers = read_qrels(qrels, queries, pool, union)
        candidate = task.candidate or modality_of(queries, pool, answers)
        found.append(
            RetrievalTask(
                task.name,
                InstructedQueries(queries_path, root, table, candidate, seed),
                pool,
                answers,
                ks=ks,
                counted=task.k,
                weight=task.weight,
                reported=task.reported if with_paper else None,
                files={"pool": pool_path, "queries": queries_path, "instructions": table.path},
            )
        )
    return found


def modality_of(queries: Rows, pool: Rows, answers: list[list[int]]) -> str:
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
