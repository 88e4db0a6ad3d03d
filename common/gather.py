"""What processes exchange of tensors: the one gather, which keeps gradients, and sums."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lamra.common.processes import several_processes


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Every rank's loss depends on this rank's rows: their gradients add up.
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def all_gather_with_grad(x: Tensor) -> Tensor:
    """Concatenate `x` (n, ...) of all ranks in rank order to (world size * n, ...), keeping gradients.

    The mean over ranks of the gradients that flow back (what DistributedDataParallel and DeepSpeed compute) is then
    the exact gradient of the mean of the ranks' losses. All ranks must hold the same shape. On one process, and
    without a process group, this is the identity.
    """
    return _AllGather.apply(x) if several_processes() else x


def sum_over_processes(x: Tensor) -> Tensor:
    """`x` added up over all processes, in place; all must call this with the same shape."""
    if several_processes():
        dist.all_reduce(x)
    return x
