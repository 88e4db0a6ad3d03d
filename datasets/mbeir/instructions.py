"""M-BEIR's query_instructions.tsv."""

from __future__ import annotations

import re
from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import read_lines
from lamra.datasets.mbeir.rows import sentence


class Instructions:
    """query_instructions.tsv: what a query of one dataset and modality may be told about what to find.

    Raises:
        UserError: the file is missing, lacks a column, or a line is short; names it.
    """

    COLUMNS = ("query_modality", "cand_modality", "dataset_name", "dataset_id", "prompt_1")

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist: data/README.md shows where M-BEIR's files go")
        header, *lines = [line.rstrip("\r\n") for line in read_lines(self.path)] or [""]
        names = header.split("\t")
        missing = [column for column in self.COLUMNS if column not in names]
        if missing:
            raise UserError(f"{self.path} lacks the column {', '.join(missing)}: its header is {header!r}")
        self._prompts: dict[tuple[int, str, str], list[str]] = {}
        self._names: dict[int, str] = {}
        for number, line in enumerate(lines, start=2):
            if not line.strip():
                continue
            row = dict(zip(names, line.split("\t")))
            prompts = [sentence(row[name]) for name in row if name.startswith("prompt_") and sentence(row[name])]
            complete = row.keys() >= set(self.COLUMNS) and re.fullmatch("[0-9]{1,6}", row["dataset_id"])
            if not prompts or not complete:
                raise UserError(f"{self.path} line {number} has no dataset_id or no prompt: complete or remove it")
            dataset = int(row["dataset_id"])
            self._names[dataset] = row["dataset_name"]
            self._prompts[dataset, row["query_modality"], row["cand_modality"]] = prompts

    def prompts(self, dataset: int, query_modality: str, candidate_modality: str) -> list[str]:
        """The instructions of a kind of query, at least one.

        Raises:
            UserError: the file has none.
        """
        found = self._prompts.get((dataset, query_modality, candidate_modality))
        if found is None:
            raise UserError(
                f"{self.path} has no instruction for queries of dataset {dataset} that are {query_modality!r} and look "
                f"for {candidate_modality!r}: add a line"
            )
        return found

    def all(self) -> list[str]:
        """Every instruction of the file, in order."""
        return [prompt for prompts in self._prompts.values() for prompt in prompts]

    def name(self, dataset: int, query_modality: str, candidate_modality: str) -> str:
        """What to call such queries, "MSCOCO text to image" for example."""
        return f"{self._names[dataset]} {query_modality} to {candidate_modality}"
