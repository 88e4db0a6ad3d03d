"""The vectors of an index, read as they lie on disk, or held in memory: an exact search is one product then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lamra.eval.search import block_top_k

if TYPE_CHECKING:
    from lancedb.table import Table

MOST = 2 * 2**30  # bytes of vectors that are held; LanceDB reads what is more from disk for each search
ROWS = 8192  # that are read at a time


def batches(table: Table, columns: Sequence[str] = ()) -> Iterator[tuple[Any, np.ndarray]]:
    """All rows in their order: a record batch with these columns, and its (n, D) float32 vectors."""
    for batch in table.search().select([*columns, "vector"]).to_batches(ROWS):
        yield batch, batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(len(batch), -1)


@dataclass(frozen=True)
class Held:
    """The vectors of one version of a table.

    Attributes:
        rows: their key, kind and folder, a pyarrow table.
        vectors: (N, D) float32.
    """

    version: int
    rows: Any
    vectors: np.ndarray

    @classmethod
    def fits(cls, table: Table, count: int) -> bool:
        """Whether so many vectors are few enough."""
        return 4 * count * table.schema.field("vector").type.list_size <= MOST

    @classmethod
    def of(cls, table: Table) -> Held:
        import pyarrow

        version, names = table.version, ["key", "kind", "folder"]
        vectors = np.empty((table.count_rows(), table.schema.field("vector").type.list_size), np.float32)
        found, filled = [], 0
        for batch, some in batches(table, names):
            vectors[filled : filled + len(some)] = some
            filled += len(some)
            found.append(batch.select(names))
        return cls(version, pyarrow.Table.from_batches(found) if found else None, vectors)

    def best(self, vector: np.ndarray, k: int, kind: str | None, folder: str | None) -> dict[str, float]:
        """The k keys nearest to a (D,) vector, best first, with their inner products; see Index.nearest."""
        if self.rows is None:
            return {}
        scores = self.vectors @ vector  # (N,)
        among = self._among(kind, folder)
        values, columns = block_top_k(torch.from_numpy(scores[among])[None], k)  # (1, k) each
        keys = self.rows["key"].take(among[columns[0].numpy()]).to_pylist()
        return dict(zip(keys, values[0].tolist()))

    def _among(self, kind: str | None, folder: str | None) -> np.ndarray:
        """The rows of a kind and in or below a folder, ascending."""
        import pyarrow.compute as compute

        kept = np.ones(len(self.vectors), bool)
        if kind:
            kept &= compute.equal(self.rows["kind"], kind).to_numpy()
        if folder:
            folders = self.rows["folder"]
            kept &= compute.or_(compute.equal(folders, folder), compute.starts_with(folders, folder + "/")).to_numpy()
        return np.flatnonzero(kept)
