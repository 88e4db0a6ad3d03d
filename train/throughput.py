"""What a step costs and how much of the device it uses."""

from __future__ import annotations

import torch
from torch import nn

from lamra.models.embedder import Embedder

# Dense bf16 TFLOP/s from the makers' data sheets, by what the device's name contains.
PEAK_TFLOPS = {"H100 PCIe": 756, "H100": 989, "H800": 989, "H200": 989, "GH200": 989, "A100": 312, "A800": 312}
PEAK_TFLOPS |= {"B200": 2250, "L40S": 362, "L4": 121, "RTX 4090": 165, "A10": 125}


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of the device in bf16, or None where its peak is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for part, peak in PEAK_TFLOPS.items() if part in name), None)


def flops_per_token(embedder: Embedder) -> float:
    """Model FLOPs of one token's forward and backward pass in the language model's linears, nothing recomputed.

    2 for the forward product of each weight, 2 for the gradient of its input, 2 more where the weight itself is
    trained; without attention scores (1 % at stage 1's lengths) and vision tower.
    """
    # By their sizes: ZeRO-3 leaves the weights empty, and NF4 packs two of them into a byte.
    linears = [m for m in embedder.stock.model.language_model.modules() if isinstance(m, nn.Linear)]
    return float(sum(m.in_features * m.out_features * (6 if m.weight.requires_grad else 4) for m in linears))
