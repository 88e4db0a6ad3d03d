"""M-BEIR's files to retrieval tasks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lamra.common.arrays import distinct
from lamra.common.errors import UserError
from lamra.datasets.items import Item
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import TaskFiles
from lamra.datasets.mbeir.qrels import read_qrels
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows, dataset_and_modality, dataset_of
from lamra.datasets.tasks import KS, RetrievalTask


class InstructedQueries(Rows):
    """The queries of an evaluation, each with one of its instructions, drawn from the seed and its id.

    Upstream would count a repeated query as often as it stands there. Here it is refused: it would weigh more than the
    others in the recall, and rankings and a reranker's answers belong to a query by its id.

    Raises:
        UserError: as Rows; or a query has no instruction, or is repeated.
    """

    def __init__(
        self, path: str | Path, root: str | Path, instructions: Instructions, candidate_modality: str, seed: int = 0
    ):
        super().__init__(path, root, QUERY)
        self.instructions, self.candidate_modality, self.seed = instructions, candidate_modality, seed
        (repeated,) = np.nonzero(self.rows_of(self.keys) != np.arange(len(self)))
        if len(repeated):
            raise UserError(
                f"{self.line(repeated[0])} repeats the query {self.id(repeated[0])}: each is asked once; "
                f"remove {len(repeated)} such lines"
            )
        for kind in distinct(self.kinds).tolist():
            instructions.prompts(*dataset_and_modality(kind), candidate_modality)
        # What decides the items beside the file; embeddings remember it.
        self.drawn_by = {"instructions": instructions.path, "seed": seed}

    def __getitem__(self, row: int) -> Item:
        dataset = dataset_of(int(self.keys[row]))
        prompts = self.instructions.prompts(dataset, self.modality(row), self.candidate_modality)
        return self.item(row, random.Random(f"{self.seed}/{self.id(row)}").choice(prompts))


class JoinedPools(Rows):
    """Several pools as one, without a file of its own; of equal ids the first is found."""

    def __init__(self, parts: Sequence[Rows]):
        self.parts, self.root, self.fields = parts, parts[0].root, CANDIDATE
        self.path = Path(" and ".join(str(part.path) for part in parts))
        self.keys = np.concatenate([part.keys for part in parts])
        self.modalities = np.concatenate([part.modalities for part in parts])
        self._by_key = np.argsort(self.keys, kind="stable")
        self._starts = np.cumsum([0, *map(len, parts)])

    def without(self, rows: np.ndarray) -> JoinedPools:
        parts = np.split(rows, self._starts[1:-1])
        return JoinedPools([pool.without(lost) if lost.any() else pool for pool, lost in zip(self.parts, parts)])

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
