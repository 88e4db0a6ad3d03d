"""The queries of an evaluation on M-BEIR."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from lamra.common.errors import UserError
from lamra.datasets.items import Item
from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.rows import MODALITIES, QUERY, Rows, dataset_of


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
        kinds = np.stack([dataset_of(self.keys), self.modalities])  # (2, N)
        for dataset, modality in np.unique(kinds, axis=1).T:
            instructions.prompts(int(dataset), MODALITIES[modality], candidate_modality)
        # What decides the items beside the file; embeddings remember it.
        self.drawn_by = {"instructions": instructions.path, "seed": seed}

    def __getitem__(self, row: int) -> Item:
        dataset = dataset_of(int(self.keys[row]))
        prompts = self.instructions.prompts(dataset, self.modality(row), self.candidate_modality)
        return self.item(row, random.Random(f"{self.seed}/{self.id(row)}").choice(prompts))
