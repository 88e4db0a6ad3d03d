"""Embeddings in files, read as one array that may be larger than memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lamra.eval.search import Embeddings, as_float32


class Shards:
    """(N, D) embeddings in .npy files, float32 or float16, of which a slice maps what it needs and is float32."""

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)
        shapes = [np.load(file, mmap_mode="r").shape for file in self.files]
        self._ends = np.cumsum([rows for rows, _ in shapes])
        self.shape = (int(self._ends[-1]), shapes[0][1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        return self.read(start, torch.empty(max(stop - start, 0), self.shape[1]))

    def read(self, start: int, out: Tensor) -> Tensor:
        """Fill `out` (n, D) float32 with the rows from `start` on."""
        filled = 0
        while filled < len(out):
            number = int(np.searchsorted(self._ends, start + filled, side="right"))
            # Copied on write, so that torch takes it for a tensor: it widens float16 in an eighth of numpy's time.
            file = np.load(self.files[number], mmap_mode="c")
            first = start + filled - (self._ends[number] - len(file))
            part = file[first : first + len(out) - filled]
            out[filled : filled + len(part)] = torch.from_numpy(part)
            filled += len(part)
        return out


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

    def __getitem__(self, part: slice) -> Tensor:
        start, stop, _ = part.indices(len(self))
        return self.read(start, torch.empty(max(stop - start, 0), self.shape[1]))

    def read(self, start: int, out: Tensor) -> Tensor:
        """Fill `out` (n, D) float32 with these rows, from the one numbered `start` on."""
        rows = self.rows[start : start + len(out)]
        filled = 0
        while filled < len(rows):
            stop = int(np.searchsorted(rows, rows[filled] + self.read_together))
            block = self.embeddings[rows[filled] : rows[stop - 1] + 1]
            out[filled:stop] = as_float32(block, "cpu")[torch.from_numpy(rows[filled:stop] - rows[filled])]
            filled = stop
        return out
