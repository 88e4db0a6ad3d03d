"""Search in smaller vectors: in the first dimensions alone, in int8, in bits; and the best once more in float32.

Only a gallery is stored so. A query is cut to the same dimensions and stays float32, as in sentence-transformers'
rescoring; an index that compares a query's bits with an item's (Hamming) finds less. A slice of a gallery is stored and
read back when it is searched, so that memory is bounded as in eval/search.py: what is measured is the recall of an
index of such bytes, not its speed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lamra.common.errors import UserError
from lamra.eval.search import Blocks, Embeddings, as_float32, rescored, search
from lamra.models.vectors import from_bits, from_int8, to_bits, to_int8, truncated

ROWS_TOGETHER = 4096  # that are in memory in both forms


class Stored:
    """(N, D) embeddings as an index with smaller vectors holds them: a slice is float32 again, (n, size).

    Args:
        size: dimensions that are kept; None: all.
        vectors: one of flags.VECTORS.

    Raises:
        UserError: the embeddings have fewer dimensions.
    """

    def __init__(self, embeddings: Embeddings, size: int | None, vectors: str = "float32"):
        dimensions = embeddings.shape[1]
        if size is not None and size > dimensions:
            raise UserError(f"--truncate_dim {size}: this model's vectors have {dimensions} dimensions, give fewer")
        self.embeddings, self.vectors = embeddings, vectors
        self.shape = (len(embeddings), size or dimensions)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        block = self.embeddings[rows]  # (n, D)
        found = torch.empty(len(block), self.shape[1])
        for start in range(0, len(block), ROWS_TOGETHER):
            some = slice(start, start + ROWS_TOGETHER)
            found[some] = self._again(truncated(as_float32(block[some], "cpu"), self.shape[1]))
        return found

    def _again(self, embeddings: Tensor) -> Tensor:
        """What is left of (n, size) embeddings after they were stored."""
        if self.vectors == "int8":
            return from_int8(*to_int8(embeddings))
        return from_bits(to_bits(embeddings), self.shape[1]) if self.vectors == "binary" else embeddings


def bytes_of(size: int, vectors: str) -> int:
    """That an item's vector takes."""
    return {"float32": 4 * size, "int8": size + 4, "binary": -(-size // 8)}[vectors]


def search_stored(
    query: Embeddings,
    gallery: Embeddings,
    k: int,
    blocks: Blocks,
    device: torch.device | str = "cpu",
    *,
    truncate_dim: int | None = None,
    vectors: str = "float32",
    rescore: int = 0,
) -> tuple[Tensor, Tensor]:
    """`search` in a gallery of smaller vectors. With the defaults it is that search.

    Args:
        truncate_dim, vectors: of the gallery; see Stored.
        rescore: so many candidates of each query are scored again with all dimensions in float32, and the best k of
            them are found (arXiv 2205.13147, section 4.3); 0: none are.

    Returns:
        As search; scores are those of the last look.
    """
    if truncate_dim is None and vectors == "float32":
        return search(query, gallery, k, blocks, device)
    stored = Stored(query, truncate_dim), Stored(gallery, truncate_dim, vectors)
    scores, indices = search(*stored, rescore or k, blocks, device)
    return rescored(query, gallery, indices, k, blocks, device) if rescore else (scores, indices)
