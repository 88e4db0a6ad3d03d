"""The contrastive loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lamra.models.distributed import all_gather_with_grad, process_rank

QUERIES_PER_BLOCK = 1024


class InfoNCE(NamedTuple):
    loss: Tensor  # (), mean over this rank's queries
    accuracy: Tensor  # (), share of queries whose own target scores highest among all targets of all ranks


def info_nce(query: Tensor, target: Tensor, temperature: float) -> InfoNCE:
    """InfoNCE (van den Oord et al., arXiv 1807.03748) of local queries against the targets of all ranks.

    More than QUERIES_PER_BLOCK queries are scored in blocks that the backward pass recomputes, so that memory grows
    with the batch and not with its square.

    Args:
        query: (B, D) unit embeddings.
        target: (M, D) unit embeddings, M >= B: row i < B is query i's positive, later rows are hard negatives.
            All ranks hold the same M.
        temperature: divides the cosine similarities; 0.05 in LamRA.
    """
    targets = all_gather_with_grad(target).float()  # (W * M, D)
    labels = torch.arange(len(query), device=query.device) + process_rank() * len(target)  # (B,)
    blocks = list(zip(query.float().split(QUERIES_PER_BLOCK), labels.split(QUERIES_PER_BLOCK)))
    if len(blocks) == 1:
        losses = [_block_loss(*blocks[0], targets, temperature)]
    else:
        losses = [checkpoint(_block_loss, *block, targets, temperature, use_reentrant=False) for block in blocks]
    loss, hits = (torch.stack(column).sum() / len(query) for column in zip(*losses))
    return InfoNCE(loss, hits.detach())


def _block_loss(query: Tensor, labels: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sums over a block of queries (b, D): the loss, and how often the own target scores highest."""
    scores = query @ targets.T / temperature  # (b, W * M), float32 also when the model is bf16
    return F.cross_entropy(scores, labels, reduction="sum"), (scores.argmax(dim=1) == labels).float().sum()
