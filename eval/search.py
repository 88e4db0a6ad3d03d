"""Exact nearest neighbours by inner product, over galleries of any size.

Dimension letters: Q queries, N gallery items, D embedding size; q and n are their counts in one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lamra.common.errors import UserError
from lamra.common.gather import all_gather_with_grad, sum_over_processes
from lamra.common.processes import is_first_process, process_rank, world_size
from lamra.models.float32 import full_float32

PATIENCE = 10.0  # seconds until a search shows how far it is
CHUNK = 32  # neighbouring scores of which only the highest is looked at first


class Embeddings(Protocol):
    """(N, D) embeddings by slices of their rows: a tensor on any device, an array, numpy.memmap, cache.shards.

    What also has `read(start, out)`, as cache.shards do, is read block by block into the same memory.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor | np.ndarray: ...


def top_k(
    query: Tensor,
    gallery: Embeddings,
    k: int,
    block_size: int = 16384,
    query_block_size: int = 1024,
    rows: range | None = None,
    tell: Callable[[int], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """The k gallery items of highest inner product with each query, best first; ties go to the lower gallery index.

    Scores are float32, on the query's device. Beside the result, memory holds one block of the gallery and one block
    of scores, query_block_size * block_size; each part of the gallery is read once. (A matrix product may round equal
    embeddings differently at different positions of a block: such a pair differs in its last bit and is no tie.)

    Args:
        query: (Q, D).
        gallery: (N, D).
        k: capped at the number of rows.
        rows: the part of the gallery to look at, by default all of it; indices are the whole gallery's.
        tell: is given the rows of each block that was looked at.

    Returns:
        (Q, k) float32 scores and (Q, k) int64 gallery indices.

    Raises:
        ValueError: k or a block size below 1, or sizes that do not fit.
        UserError: a score is NaN.
    """
    if min(k, block_size, query_block_size) < 1:
        raise ValueError(f"k={k}, block_size={block_size}, query_block_size={query_block_size}: at least 1 each")
    if query.ndim != 2 or len(gallery.shape) != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query {tuple(query.shape)} and gallery {tuple(gallery.shape)} must be (Q, D) and (N, D)")
    rows = range(len(gallery)) if rows is None else rows
    scores = torch.empty(len(query), 0, device=query.device)
    indices = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
    # For all products, since a new one costs a third of its time in page faults.
    room = torch.empty(min(query_block_size, len(query)) * min(block_size, len(rows)), device=query.device)
    with torch.no_grad(), full_float32():
        for start, block in blocks_of(gallery, rows, block_size, query.device):
            parts = []
            for some in query.split(query_block_size):  # (q, D)
                product = room[: len(some) * len(block)].view(len(some), len(block))
                parts.append(block_top_k(torch.mm(some.float(), block.T, out=product), k))
            # What was kept so far has the lower indices and stands first: the stable sort leaves ties to it.
            merged = torch.cat([scores, torch.cat([s for s, _ in parts])], dim=1)  # (Q, up to 2k)
            merged_indices = torch.cat([indices, torch.cat([i for _, i in parts]) + start], dim=1)
            scores, order = merged.sort(dim=1, descending=True, stable=True)
            scores, indices = scores[:, :k], merged_indices.gather(1, order[:, :k])  # (Q, k)
            if tell:
                tell(len(block))
    return scores, indices


class Blocks(NamedTuple):
    """How much a search holds in memory at a time."""

    queries: int  # that look at the gallery together; it is read once for each such group
    block_size: int
    query_block_size: int

    @classmethod
    def within(cls, memory: float, dimension: int, k: int) -> Blocks:
        """What fits into `memory` bytes, beside the program itself: half for queries, a quarter for the gallery.

        Raises:
            UserError: not even one query and one candidate at a time fit.
        """
        a_query = 4 * dimension + 6 * 12 * k  # float32; the best so far, joined with a block's and sorted
        a_candidate = 2 * 4 * dimension  # as it is read, and as it is multiplied
        a_score = 4 * 4  # float32, and three more where ties are told apart
        block_size = int(memory / 4 / a_candidate)
        blocks = cls(int(memory / 2 / a_query), block_size, int(memory / 4 / a_score / max(block_size, 1)))
        if min(blocks) < 1:
            needed = max(2 * a_query, 4 * a_candidate, 4 * a_score * max(block_size, 1))
            raise UserError(f"--search_memory {memory / 2**30:g} GiB is too little: give {needed / 2**30:g} or more")
        return blocks


def search(
    query: Embeddings, gallery: Embeddings, k: int, blocks: Blocks, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """`top_k` shared out: each process looks at its part of the gallery.

    Equal on any number of processes, bit for bit: they share out whole blocks, which are the same, because a matrix
    product may round the same embeddings differently where its shape is another.

    Args:
        query, gallery: (Q, D) and (N, D), the same on every process.

    Returns:
        (Q, k) float32 scores and (Q, k) int64 gallery indices on the CPU, the same on every process.
    """
    world, rank = world_size(), process_rank()
    count = -(-len(gallery) // blocks.block_size)
    first, last = (min(count * of // world * blocks.block_size, len(gallery)) for of in (rank, rank + 1))
    found, groups = [], range(0, len(query), blocks.queries)
    with tqdm(
        total=len(groups) * (last - first),
        desc="search",
        unit="candidate",
        unit_scale=True,
        delay=PATIENCE,
        disable=not is_first_process(),
    ) as progress:
        for start in groups:
            together = as_float32(query[start : start + blocks.queries], device)  # (q, D)
            sizes = blocks.block_size, blocks.query_block_size
            best = top_k(together, gallery, k, *sizes, range(first, last), progress.update)
            found.append([column.cpu() for column in _merge_ranks(*best, k)])
    scores, indices = (torch.cat(column)[:, : len(gallery)] for column in zip(*found))
    return scores, indices


def rescored(
    query: Embeddings,
    gallery: Embeddings,
    candidates: Tensor,
    k: int,
    blocks: Blocks,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """The k best of each query's own candidates, scored in float32; ties go to the lower gallery index.

    The processes share out the gallery's blocks as `search` does, and each part of it is read once for a group of
    queries. Products are summed row by row, so that equal embeddings tie.

    Args:
        query, gallery: (Q, D) and (N, D), the same on every process.
        candidates: (Q, C) int64 gallery indices, a candidate once in a row, the same on every process.

    Returns:
        (Q, k) float32 scores and (Q, k) int64 gallery indices on the CPU, the same on every process; k is at most C.
    """
    world, rank = world_size(), process_rank()
    candidates = candidates.sort(dim=1).values  # so that the stable sort leaves ties to the lower index
    numbers = torch.arange(-(-len(gallery) // blocks.block_size)).tensor_split(world)[rank].tolist()
    scores = torch.zeros(candidates.shape)
    for start in range(0, len(query), blocks.queries):
        together = as_float32(query[start : start + blocks.queries], device)  # (q, D)
        of_group, found = candidates[start : start + blocks.queries], scores[start : start + blocks.queries]  # (q, C)
        for first in (number * blocks.block_size for number in numbers):
            queries, columns = ((of_group >= first) & (of_group < first + blocks.block_size)).nonzero(as_tuple=True)
            if not len(queries):
                continue
            block = as_float32(gallery[first : first + blocks.block_size], device)  # (n, D)
            # Pairs whose rows and products take no more than a search's scores.
            for some in torch.arange(len(queries)).split(max(blocks.block_size // 2, 1)):
                rows = of_group[queries[some], columns[some]] - first
                products = together[queries[some].to(device)] * block[rows.to(device)]  # (pairs, D)
                found[queries[some], columns[some]] = products.sum(dim=1).cpu()
    scores = sum_over_processes(scores.to(device)).cpu()  # each is one process's, and the others add zeros
    scores, order = (scores + 0.0).sort(dim=1, descending=True, stable=True)  # -0.0 becomes 0.0, as in a search
    return scores[:, :k], candidates.gather(1, order[:, :k])


def _merge_ranks(scores: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best k (q, k) of what all ranks found. Their parts ascend, so that a stable sort keeps the rule for ties."""
    missing = (0, k - scores.shape[1])  # a part with fewer than k candidates
    scores = torch.nn.functional.pad(scores, missing, value=-torch.inf)  # (q, k)
    indices = torch.nn.functional.pad(indices, missing, value=-1)
    scores, indices = (
        all_gather_with_grad(x).view(-1, *x.shape).transpose(0, 1).flatten(1) for x in (scores, indices)
    )  # (q, ranks * k)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores[:, :k], indices.gather(1, order[:, :k])


def block_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores (q, n) to the best k of each row and their columns, (q, min(k, n)) each, ties by the lower column."""
    if k * 4 * CHUNK > scores.shape[1]:
        return _sorted_top_k(scores, k)
    # The best k lie in the k chunks of the highest maxima: a maximum is read off in a tenth of the time of torch.topk.
    # Of tied maxima the first chunks are kept, so that ties still go to the lower column.
    in_chunks = scores.shape[1] // CHUNK * CHUNK
    maxima = scores[:, :in_chunks].unflatten(1, (-1, CHUNK)).amax(dim=2)  # (q, n // CHUNK), NaN where a score is
    chunks = block_top_k(maxima, k)[1].sort(dim=1).values  # (q, k), ascending
    columns = chunks[:, :, None] * CHUNK + torch.arange(CHUNK, device=scores.device)  # (q, k, CHUNK)
    rest = torch.arange(in_chunks, scores.shape[1], device=scores.device).expand(len(scores), -1)
    columns = torch.cat([columns.flatten(1), rest], dim=1)
    values, order = _sorted_top_k(scores.gather(1, columns), k)
    return values, columns.gather(1, order)


def _sorted_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same by torch.topk."""
    k = min(k, scores.shape[1])
    # The k + 1 best show which rows have a tie across the k-th position, where torch.topk may keep any of the tied.
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    if values.isnan().any():  # NaN counts as the highest
        raise UserError("a score is NaN: the query or gallery embeddings hold NaN or infinity; embed them again")
    if values.shape[1] > k:
        tied = values[:, k - 1] == values[:, k]  # (q,)
        columns = columns[:, :k]
        columns[tied] = _lowest_columns(scores[tied], values[tied, k - 1, None], k)
    columns = columns.sort(dim=1).values  # ascending, so that the stable sort leaves ties to the lower column
    values = scores.gather(1, columns) + 0.0  # -0.0 becomes 0.0: a radix sort could tell them apart
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _lowest_columns(scores: Tensor, kth: Tensor, k: int) -> Tensor:
    """Columns (t, k) of all scores (t, n) above the k-th best, kth (t, 1), and of the first that equal it."""
    above, equal = scores > kth, scores == kth
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= k - above.sum(dim=1, keepdim=True)))
    return chosen.nonzero()[:, 1].view(-1, k)  # exactly k in each row


def blocks_of(
    gallery: Embeddings, rows: range, block_size: int, device: torch.device | str
) -> Iterator[tuple[int, Tensor]]:
    """The first row and the (n, D) float32 embeddings of each block; a block of files takes the memory of the last."""
    read = getattr(gallery, "read", None)
    room = torch.empty(min(block_size, len(rows)), gallery.shape[1]) if read else None
    for start in range(rows.start, rows.stop, block_size):
        stop = min(start + block_size, rows.stop)
        block = gallery[start:stop] if room is None else read(start, room[: stop - start])
        yield start, as_float32(block, device)


def as_float32(block: Tensor | np.ndarray, device: torch.device | str) -> Tensor:
    if not isinstance(block, Tensor):
        block = torch.from_numpy(np.array(block, dtype=np.float32))  # a copy: a read-only memmap cannot be a tensor
    return block.to(device, torch.float32)
