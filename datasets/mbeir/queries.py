"""The queries of an evaluation on M-BEIR."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from lamra.common.errors import UserError
from lamra.datasets.items import Item
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.rows import MODALITIES, Rows, dataset_of


class InstructedQueries(Sequence[Item]):
    """The queries of an evaluation, each with one of its instructions, drawn from the seed and its id.

    Upstream would count a repeated query as often as it stands there. Here it is refused: it would weigh more than the
    others in the recall, and rankings and a reranker's answers belong to a query by its id.

    Attributes:
        drawn_by: what decides the items beside the file of queries.

    Raises:
        UserError: a query has no instruction, or is repeated.
    """

    def __init__(self, queries: Rows, instructions: Instructions, candidate_modality: str, seed: int = 0):
        self.queries, self.instructions, self.seed = queries, instructions, seed
        self.candidate_modality = candidate_modality
        self.name, self.path, self.id, self.find = queries.name, queries.path, queries.id, queries.find
        self.drawn_by = {"instructions": instructions.path, "seed": seed}
        first = queries.rows_of(queries.keys)  # (N,)
        (repeated,) = np.nonzero(first != np.arange(len(queries)))
        if len(repeated):
            raise UserError(
                f"{queries.line(repeated[0])} repeats the query {queries.id(repeated[0])}: each is asked once; "
                f"remove {len(repeated)} such lines"
            )
        kinds = np.stack([dataset_of(queries.keys), queries.modalities])  # (2, N)
        for dataset, modality in np.unique(kinds, axis=1).T:
            instructions.prompts(int(dataset), MODALITIES[modality], candidate_modality)

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, row: int) -> Item:
        dataset = dataset_of(int(self.queries.keys[row]))
        prompts = self.instructions.prompts(dataset, self.queries.modality(row), self.candidate_modality)
        return self.queries.item(row, random.Random(f"{self.seed}/{self.queries.id(row)}").choice(prompts))
