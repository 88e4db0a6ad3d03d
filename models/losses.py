"""The contrastive loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lamra.models.distributed import all_gather_with_grad, process_rank


class InfoNCE(NamedTuple):
    loss: Tensor  # (), mean over this rank's queries
    accuracy: Tensor  # (), share of queries whose own target scores highest among all targets of all ranks


def info_nce(query: Tensor, target: Tensor, temperature: float) -> InfoNCE:
    """InfoNCE (van den Oord et al., arXiv 1807.03748) of local queries against the targets of all ranks.

    Args:
        query: (B, D) unit embeddings.
        target: (M, D) unit embeddings, M >= B: row i < B is query i's positive, later rows are hard negatives.
            All ranks hold the same M.
        temperature: divides the cosine similarities; 0.05 in LamRA.
    """
    targets = all_gather_with_grad(target)  # (W * M, D)
    scores = query.float() @ targets.float().T / temperature  # (B, W * M), float32 also when the model is bf16
    labels = torch.arange(len(query), device=query.device) + process_rank() * len(target)  # (B,)
    accuracy = (scores.argmax(dim=1) == labels).float().mean()
    return InfoNCE(F.cross_entropy(scores, labels), accuracy.detach())
