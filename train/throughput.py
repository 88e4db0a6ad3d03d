"""What a step costs and how much of the device it uses."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from lamra.common.gather import sum_over_processes
from lamra.models.embedder import Embedder
from lamra.models.reranker import Reranker

# Dense bf16 TFLOP/s from the makers' data sheets, by what the device's name contains.
PEAK_TFLOPS = {"H100 PCIe": 756, "H100": 989, "H800": 989, "H200": 989, "GH200": 989, "A100": 312, "A800": 312}
PEAK_TFLOPS |= {"B200": 2250, "L40S": 362, "L4": 121, "RTX 4090": 165, "A10": 125}


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of the device in bf16, or None where its peak is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for part, peak in PEAK_TFLOPS.items() if part in name), None)


def flops_per_token(model: Embedder | Reranker) -> float:
    """Model FLOPs of one token's forward and backward pass in the language model's linears, nothing recomputed.

    2 for the forward product of each weight, 2 for the gradient of its input, 2 more where the weight itself is
    trained; without attention scores (1 % at stage 1's lengths) and vision tower.
    """
    # By their sizes: ZeRO-3 leaves the weights empty, and NF4 packs two of them into a byte.
    linears = [m for m in model.stock.model.language_model.modules() if isinstance(m, nn.Linear)]
    return float(sum(m.in_features * m.out_features * (6 if m.weight.requires_grad else 4) for m in linears))


class Throughput:
    """Accuracy, useful tokens and pairs since the last report; all processes count and report together.

    Useful tokens are those that can influence the loss: padding is not counted, nor anything computed twice.
    """

    def __init__(self, device: torch.device, model: Embedder | Reranker):
        self.device, self.peak, self.flops_per_token = device, peak_flops(device), flops_per_token(model)
        self._begin()

    def count(self, accuracy: Tensor, tokens: Tensor, pairs: int, **more: Tensor) -> None:
        """Add a batch; `more` are measures of it, the same in every batch, of which the means are reported too."""
        for name, value in {"accuracy": accuracy, **more}.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=self.device)) + value
        self._tokens += tokens
        self._pairs += pairs
        self._batches += 1

    def restart_clock(self) -> None:
        """Leave out the time since the last report: it went into something else than training."""
        self._since = time.perf_counter()

    def report(self) -> dict[str, float]:
        """Means over all batches and processes since the last report; nothing without any. MFU where it is known."""
        if not self._batches:
            return {}
        seconds = time.perf_counter() - self._since
        tokens = self._tokens.float()
        totals = torch.stack([*self._sums.values(), tokens, torch.ones_like(tokens)])
        *sums, tokens, ranks = sum_over_processes(totals).tolist()
        found = {
            **{name: total / (self._batches * ranks) for name, total in zip(self._sums, sums)},
            "samples_per_second": self._pairs * ranks / seconds,
            "useful_tokens_per_second": tokens / seconds,
        }
        if self.peak:
            found["mfu"] = tokens / ranks * self.flops_per_token / seconds / self.peak
        self._begin()
        return found

    def _begin(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._tokens = torch.zeros((), dtype=torch.long, device=self.device)
        self._pairs = self._batches = 0
        self._since = time.perf_counter()
