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
        filled = 0
        while start + filled < stop:
            number = int(np.searchsorted(self._ends, start + filled, side="right"))
            file = np.load(self.files[number], mmap_mode="r")
            first = start + filled - (self._ends[number] - len(file))
            part = file[first : first + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
        return out


class RowsOf:
    """Some rows of (N, D) embeddings, in ascending order, to be sliced as if there were no others."""

    READ_TOGETHER = 4096  # rows of the embeddings

    def __init__(self, embeddings: Embeddings, rows: np.ndarray):
        self.embeddings, self.rows, self.shape = embeddings, rows, (len(rows), embeddings.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray:
        rows = self.rows[part]
        out = np.empty((len(rows), self.shape[1]), np.float32)
        start = 0
        while start < len(rows):
            stop = int(np.searchsorted(rows, rows[start] + self.READ_TOGETHER))
            block = np.asarray(self.embeddings[rows[start] : rows[stop - 1] + 1])
            out[start:stop] = block[rows[start:stop] - rows[start]]
            start = stop
        return out
