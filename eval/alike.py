"""Which candidates show the same: a text word for word, a picture of one path or of equal bytes, or nothing at all.

Each row of the pool is read once, by one process, and is a few numbers from then on. Texts and paths are told apart by
64 bits of a digest: among M-BEIR's 5.6 million rows two differ and have the same with a chance of one in a million.
"""

from __future__ import annotations

import os
from hashlib import blake2b

import numpy as np

from lamra.common.arrays import distinct
from lamra.common.files import sha256
from lamra.common.processes import of_all_processes, process_rank, world_size
from lamra.datasets.mbeir.rows import Rows, sentence

NOTHING = 0  # the number of a text or a picture that is not there


class Contents:
    """What the rows of a pool show, as numbers. All processes must make one: they share the work.

    Attributes:
        texts, pictures: (N,) int64 numbers of its text and of its picture's path, NOTHING without.
        sizes: (N,) int64 bytes of the picture's file, NOTHING without.
    """

    def __init__(self, pool: Rows):
        self.pool = pool
        ends = np.linspace(0, len(pool), world_size() + 1).astype(int).tolist()
        mine = range(ends[process_rank()], ends[process_rank() + 1])
        table = np.zeros((3, len(mine)), dtype=np.int64)
        text_name, picture_name, root = pool.fields.text, pool.fields.picture, str(pool.root)
        for column, record in enumerate(pool.records(mine.start, mine.stop)):
            if text := sentence(record.get(text_name)):
                table[0, column] = number_of(text)
            if picture := record.get(picture_name):
                path = os.path.normpath(os.path.join(root, picture))
                table[1, column], table[2, column] = number_of(path), os.stat(path).st_size
        self.texts, self.pictures, self.sizes = np.concatenate(of_all_processes([table]), axis=1)
        self._bytes = np.zeros(len(pool), dtype=np.int64)  # of pictures that were read, because another has their size

    def compare(self, candidates: np.ndarray, owners: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which candidates of q queries are answers, and which of the others show what an answer shows.

        Args:
            candidates: (q, d) rows of the pool.
            owners, answers: (A,) positions of queries, ascending, and rows of the pool that answer them.

        Returns:
            (q, d) bool each.
        """
        same, alike = np.zeros((2, *candidates.shape), dtype=bool)
        nth = np.arange(len(owners)) - np.searchsorted(owners, owners)  # of its query's answers
        texts, pictures = self.texts[candidates], self.pictures[candidates]  # (q, d)
        blank = (texts == NOTHING) & (pictures == NOTHING)
        for number in range(nth.max(initial=-1) + 1):
            query, answer = owners[nth == number], answers[nth == number]  # (n,), a query once
            text, picture = self.texts[answer][:, None], self.pictures[answer][:, None]  # (n, 1)
            same[query] |= candidates[query] == answer[:, None]
            found = (texts[query] == text) & (text != NOTHING)  # (n, d)
            found |= blank[query] & ((text == NOTHING) & (picture == NOTHING))
            if (picture != NOTHING).any():
                found |= (pictures[query] == picture) & (picture != NOTHING)
                of_size = (self.sizes[candidates[query]] == self.sizes[answer][:, None]) & (picture != NOTHING)
                row, column = np.nonzero(of_size & (pictures[query] != NOTHING) & ~found)
                found[row, column] = self._bytes_of(candidates[query[row], column]) == self._bytes_of(answer[row])
            alike[query] |= found
        return same, alike & ~same

    def _bytes_of(self, rows: np.ndarray) -> np.ndarray:
        """(n,) numbers of the bytes of pictures; each file is read once."""
        for row in distinct(rows[self._bytes[rows] == NOTHING]).tolist():
            self._bytes[row] = number_of(sha256(str(self.pool.item(row).images[0])))
        return self._bytes[rows]


def number_of(text: str) -> int:
    """An int64 that stands for a text; never NOTHING."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True) or 1
