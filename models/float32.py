"""Matrix products in true float32, also where training switched TF32 on, which has 10 bits of mantissa."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


@contextmanager
def full_float32() -> Iterator[None]:
    """Within it, float32 matrix products of any device keep all 23 bits."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision


class _InnerProducts(torch.autograd.Function):
    """The backward pass runs later, outside any context of the forward pass: it needs its own."""

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        with full_float32():
            return a @ b.T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors  # (n, D), (m, D)
        with full_float32():
            return grad @ b, grad.T @ a


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) float32 inner products of the rows of a (n, D) and b (m, D), and gradients as exact."""
    return _InnerProducts.apply(a.float(), b.float())
