"""RMSNorm by PyTorch's fused kernel on a GPU: a tenth of a stage-1 step of the 7B (benchmarks/README.md)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fuse_norms(language_model: nn.Module) -> None:
    """Let every RMSNorm of a stock language model run as one kernel where its input is on a GPU.

    The library's runs as six, each of which reads and writes all hidden states. Elsewhere its own forward runs.
    """
    for module in language_model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_forward, module, module.forward)


def _forward(norm: nn.Module, stock_forward: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
    return rms_norm(norm, hidden_states) if hidden_states.is_cuda else stock_forward(hidden_states)


def rms_norm(norm: Any, hidden_states: Tensor) -> Tensor:
    """(..., D) normalised in float32 and scaled by the module's weight, in the dtype of hidden_states (rounded once).

    Autocast would make a float32 copy of its input and return float32.
    """
    with torch.autocast(hidden_states.device.type, enabled=False):
        weight = norm.weight.to(hidden_states.dtype)
        return F.rms_norm(hidden_states, weight.shape, weight, norm.variance_epsilon)
