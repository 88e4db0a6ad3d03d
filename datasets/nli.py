"""NLI triplets for stage 1: nli_for_simcse.csv with columns sent0, sent1, hard_neg (Gao et al., arXiv 2104.08821)."""

from __future__ import annotations

import warnings
from pathlib import Path

from lamra.common.errors import UserError
from lamra.datasets.items import Item, Pair


class NLIPairs:
    """Pairs (sent0, sent1) of a csv; with `use_hard_negatives` hard_neg follows as each pair's hard negative.

    Rows in which a needed sentence is empty are dropped and counted in `dropped`. Words such as None, null and NA are
    sentences like any other.

    Raises:
        UserError: the file is missing, no csv, lacks a column or has no usable row.
    """

    def __init__(self, path: str | Path, use_hard_negatives: bool = False):
        import pandas as pd  # half a second, and this module is imported for its name by --help

        self.columns = ["sent0", "sent1"] + ["hard_neg"] * use_hard_negatives
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
                # keep_default_na=False: pandas would turn "None" and "NA" into NaN, and an f-string that into "nan".
                # index_col=False: it would take the first of too many columns for row names, and shift the others.
                frame = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
        except FileNotFoundError:
            raise UserError(f"the csv {path} does not exist: bash scripts/download.sh nli gets it") from None
        except (pd.errors.ParserWarning, OSError, ValueError) as error:  # pandas' and Unicode's are ValueErrors
            raise UserError(f"{path} cannot be read as a csv: {' '.join(str(error).split())}") from None
        missing = [column for column in self.columns if column not in frame.columns]
        if missing:
            header = " ".join(", ".join(frame.columns).split())
            raise UserError(
                f"{path} lacks the column {', '.join(missing)}: its header is {header[:200]}, "
                "expected sent0,sent1,hard_neg"
            )
        frame = frame[self.columns]
        full = frame.apply(lambda column: column.str.strip() != "").all(axis=1)
        self.dropped = int((~full).sum())
        self.rows = frame[full].to_numpy().tolist()
        if not self.rows:
            raise UserError(
                f"{path} has no row with {' and '.join(self.columns)} ({self.dropped} rows with an empty one)"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        query, target, *negatives = (Item(f"{index}.{c}", text) for c, text in zip(self.columns, self.rows[index]))
        return Pair(query, target, tuple(negatives))
