"""The file of communities: which rows of the training queries stand in one batch, as train/mine_batches.py writes it.

A jsonl. The first line says of what it is made, {"size", "rows", "queries", "pool"}: rows of a community, rows of all,
and the sha256 of the two files. Each other line is a community, {"task", "rows"}; one that holds rows of several tasks
has the task null, and what is left over, fewer rows than a community has, stands last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lamra.common.errors import UserError
from lamra.common.files import Row, read_jsonl, whole_file

MADE_OF = {"queries": "--queries", "pool": "--pool"}


class Communities(NamedTuple):
    """Rows that are hard for one another; each row of the training pairs is in one community, or left over.

    Attributes:
        rows: (C, K) int64.
        tasks: (C,) the task of all rows of a community, None where they have several.
        left: (fewer than K,) int64, rows in no community.
    """

    rows: np.ndarray
    tasks: list[str | None]
    left: np.ndarray

    @property
    def size(self) -> int:
        return self.rows.shape[1]

    def write(self, path: str | Path, sha256: dict[str, str]) -> None:
        """Write the file; sha256 of the "queries" and of the "pool"."""
        with whole_file(path) as file:
            file.write(json.dumps({"size": self.size, "rows": self.rows.size + len(self.left), **sha256}) + "\n")
            for task, rows in zip([*self.tasks, None], [*self.rows, self.left]):
                if len(rows):
                    file.write(json.dumps({"task": task, "rows": rows.tolist()}) + "\n")

    @classmethod
    def read(cls, path: str | Path, sha256: dict[str, str], rows: int) -> Communities:
        """The communities of a file, for training on the `rows` pairs of these queries and this pool.

        Raises:
            UserError: the file is none of mine_batches.sh's, is damaged, or was made of other data.
        """
        lines = read_jsonl(path)
        head = next(lines, None)
        if head is None or type(head.get("size")) is not int or head["size"] < 1 or type(head.get("rows")) is not int:
            raise UserError(f"--batches {path} is not what scripts/lamra_ret/mine_batches.sh writes: give its file")
        for name, flag in MADE_OF.items():
            if head.get(name) != sha256[name]:
                raise UserError(
                    f"--batches {path} was made of another {flag} file (its sha256 is {str(head.get(name))[:12]}, not "
                    f"{sha256[name][:12]}): make it again with mine_batches.sh"
                )
        size, found = head["size"], list(_communities(lines, head["size"]))
        whole = [of for of in found if len(of[1]) == size]
        left = [of[1] for of in found if len(of[1]) < size]
        table = np.array([numbers for _, numbers in whole], dtype=np.int64).reshape(-1, size)
        rest = np.array(left[0] if left else [], dtype=np.int64)
        every = np.sort(np.append(table, rest))
        if len(left) > 1 or head["rows"] != rows or not np.array_equal(every, np.arange(rows)):
            raise UserError(
                f"--batches {path} does not hold each of the {rows} training rows once: it is damaged or was made of "
                "other files, make it again with mine_batches.sh"
            )
        return cls(table, [task for task, _ in whole], rest)


def _communities(lines: Iterator[Row], size: int) -> Iterator[tuple[str | None, Sequence[int]]]:
    for row in lines:
        task, rows = row["task"], row["rows"]
        if not isinstance(task, str | None) or not isinstance(rows, list) or not 0 < len(rows) <= size:
            raise UserError(f"{row.location} is not {{task, rows}} with 1 to {size} rows: make the file again")
        if any(type(number) is not int or not 0 <= number < 2**31 for number in rows):
            raise UserError(f"{row.location} has a row that is no whole number: make the file again")
        yield task, rows
