"""Smaller vectors from embeddings of unit norm: their first dimensions, a byte a dimension, or a bit."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_INT8 = 127  # of either sign


def truncated(embeddings: Tensor, size: int) -> Tensor:
    """The first `size` of D dimensions, of unit norm again (Matryoshka, arXiv 2205.13147): (N, D) to (N, size)."""
    if size == embeddings.shape[1]:
        return embeddings
    return F.normalize(embeddings[:, :size], dim=-1)


def to_int8(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) as (N, D) int8, and what each is multiplied by to be itself again, (N,) float32.

    A scale for each vector: its largest value becomes 127. It needs no calibration, so that a vector's bytes depend on
    no other vector. A fixed 127 would use few of the 255 steps: values of a unit vector are near 1 / sqrt(D). On random
    vectors of 3584 dimensions its error is 16 times as large.
    """
    scales = embeddings.abs().amax(dim=1) / LARGEST_INT8  # (N,)
    values = embeddings / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]  # a vector of zeros stays zeros
    return values.round().to(torch.int8), scales


def from_int8(values: Tensor, scales: Tensor) -> Tensor:
    """What `to_int8` kept of the embeddings, (N, D) float32."""
    return values.float() * scales[:, None]


def to_bits(embeddings: Tensor) -> Tensor:
    """Which values of (N, D) are above zero, eight to a byte: (N, ceil(D / 8)) uint8.

    The bytes of sentence-transformers' quantize_embeddings(precision="ubinary").
    """
    return torch.from_numpy(np.packbits(embeddings.numpy() > 0, axis=1))


def from_bits(bits: Tensor, size: int) -> Tensor:
    """(N, size) float32 of unit norm: of one sign where a bit is set, else of the other."""
    signs = torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, count=size)).float() * 2 - 1
    return signs * size**-0.5
