"""NLI triplets for stage 1: nli_for_simcse.csv with columns sent0, sent1, hard_neg (Gao et al., arXiv 2104.08821)."""

from __future__ import annotations

from pathlib import Path

from lamra.common.errors import UserError
from lamra.common.files import read_csv
from lamra.datasets.items import Item, Pair, is_blank


class NLIPairs:
    """Pairs (sent0, sent1) of a csv; with `use_hard_negatives` hard_neg follows as each pair's hard negative.

    Rows in which a needed sentence is empty are dropped and counted in `dropped`. Words such as None, null and NA are
    sentences like any other. `folded` counts the rows that go over several lines, which a stray quote makes.

    Raises:
        UserError: the file is missing, no csv, lacks a column or has no usable row.
    """

    def __init__(self, path: str | Path, use_hard_negatives: bool = False):
        self.columns = ["sent0", "sent1"] + ["hard_neg"] * use_hard_negatives
        if not Path(path).exists():
            raise UserError(f"the csv {path} does not exist: bash scripts/download.sh nli gets it")
        self.rows: list[list[str]] = []
        self.dropped = self.folded = 0
        for row in read_csv(path, self.columns):
            sentences = [row[column] for column in self.columns]
            self.folded += row.lines > 1
            if any(map(is_blank, sentences)):
                self.dropped += 1
            else:
                self.rows.append(sentences)
        if not self.rows:
            raise UserError(
                f"{path} has no row with {' and '.join(self.columns)} ({self.dropped} rows with an empty one)"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        query, target, *negatives = (Item(f"{index}.{c}", text) for c, text in zip(self.columns, self.rows[index]))
        return Pair(query, target, tuple(negatives))
