"""One training step over any number of in-batch negatives in the memory of one chunk (GradCache, arXiv 2101.06983).

The batch is embedded in chunks that keep no activations; the loss and its gradient are taken once over all embeddings;
then the backward pass recomputes chunk after chunk with its own random state, so that dropout agrees, and frees it.
PyTorch's activation checkpointing around each chunk is exactly that, and it is one backward pass: data parallelism and
DeepSpeed reduce every gradient once a step, as always.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def embed_in_chunks(
    embed: Callable[..., Tensor],
    chunk_size: int,
    input_ids: Tensor,
    attention_mask: Tensor,
    pixel_values: Tensor | None,
    image_grid_thw: Tensor | None,
    images_per_row: Tensor,
) -> Tensor:
    """`embed` on rows 0..n-1, n..2n-1, ... of the batch.

    Args:
        embed: takes input_ids, attention_mask, pixel_values, image_grid_thw; gives (rows, D).
        input_ids, attention_mask: (B, L), padded on the right.
        pixel_values, image_grid_thw: (P, C) and (images, 3) of all rows in order, or None.
        images_per_row: (B,) number of pictures in each row.

    Returns:
        (B, D), equal to `embed` of the whole batch, and so are the gradients.
    """
    images = images_per_row.split(chunk_size)
    grids: Sequence[Tensor | None] = [None] * len(images)
    pixels = grids
    if image_grid_thw is not None:
        assert pixel_values is not None
        grids = image_grids = image_grid_thw.split([int(count.sum()) for count in images])
        pixels = pixel_values.split([int(grid.prod(dim=1).sum()) for grid in image_grids])
    parts = []
    for ids, mask, pixel, grid in zip(input_ids.split(chunk_size), attention_mask.split(chunk_size), pixels, grids):
        longest = int(mask.sum(dim=1).max())
        pictures = (pixel, grid) if grid is not None and len(grid) else (None, None)
        parts.append(checkpoint(embed, ids[:, :longest], mask[:, :longest], *pictures, use_reentrant=False))
    return torch.cat(parts)
