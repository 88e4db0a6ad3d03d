"""A temperature of the contrastive loss that is trained, between two bounds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lamra.common.gather import sum_over_processes


class _Bounded(torch.autograd.Function):
    """Clamps, and lets a gradient through unless a step against it would lead further out.

    A plain clamp has no gradient at the bound: a value that got there could never come back. Whether the step would
    lead out is asked of all processes' gradients together, as the optimizer will see them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x <= low, x >= high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        at_low, at_high = ctx.saved_tensors
        total = sum_over_processes(grad.clone())
        return grad.masked_fill((at_low & (total > 0)) | (at_high & (total < 0)), 0.0), None, None


class Temperature(nn.Module):
    """start * exp(-offset), never below `low` or above `high`; the offset is trained and begins at 0.

    So the logarithm of the scale 1 / temperature is what learns, as in CLIP (arXiv 2103.00020). Kept as its distance
    from the start, because DeepSpeed trains in bf16 with a copy of the parameter in bf16: around log 20 = 3.0 its steps
    would be of 1.6 %.
    """

    def __init__(self, start: float, low: float, high: float) -> None:
        super().__init__()
        self.start = start
        self.bounds = math.log(start / high), math.log(start / low)
        self.offset = nn.Parameter(torch.zeros(1))  # (1,): DeepSpeed shares out vectors

    def forward(self) -> Tensor:
        """The temperature, () float32."""
        return self.start * torch.exp(-_Bounded.apply(self.offset.float(), *self.bounds)[0])

    def at(self, offset: float) -> float:
        """The temperature at an offset."""
        low, high = self.bounds
        return self.start * math.exp(-min(max(offset, low), high))
