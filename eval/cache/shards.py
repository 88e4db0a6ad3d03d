"""Embeddings in files, read as one array that may be larger than memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lamra.eval.search import Embeddings


class Shards:
    """(N, D) float32 embeddings in .npy files. A slice maps the files that it needs, copies, and lets go of them."""

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)
        shapes = [np.load(file, mmap_mode="r").shape for file in self.files]
        self._ends = np.cumsum([rows for rows, _ in shapes])
        self.shape = (int(self._ends[-1]), shapes[0][1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        out = np.empty((max(stop - start, 0), self.shape[1]), np.float32)
        self.read_into(out, start)
        return out

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out`, (n, D) float32, with the n rows from `start` on."""
        filled = 0
        while filled < len(out):
            number = int(np.searchsorted(self._ends, start + filled, side="right"))
            file = np.load(self.files[number], mmap_mode="r")
            first = start + filled - (self._ends[number] - len(file))
            part = file[first : first + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)


class RowsOf:
    """Some rows of (N, D) embeddings, in ascending order, to be sliced as if there were no others.

    Args:
        read_together: so many neighbouring rows of the embeddings are read at once where one of them is wanted.
    """

    def __init__(self, embeddings: Embeddings, rows: np.ndarray, read_together: int = 4096):
        self.embeddings, self.rows, self.shape = embeddings, rows, (len(rows), embeddings.shape[1])
        self.read_together = read_together

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray:
        rows = self.rows[part]
        out = np.empty((len(rows), self.shape[1]), np.float32)
        start = 0
        while start < len(rows):
            stop = int(np.searchsorted(rows, rows[start] + self.read_together))
            block = np.asarray(self.embeddings[rows[start] : rows[stop - 1] + 1])
            out[start:stop] = block[rows[start:stop] - rows[start]]
            start = stop
        return out
