"""The contrastive loss, and what a retriever learns from a reranker."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lamra.common.errors import UserError
from lamra.common.gather import all_gather_with_grad
from lamra.common.processes import process_rank, several_processes
from lamra.models.float32 import inner_products

QUERIES_PER_BLOCK = 1024


class InfoNCE(NamedTuple):
    loss: Tensor  # (), mean over this rank's queries
    accuracy: Tensor  # (), share of queries whose own target, or an equal item, scores highest of all ranks' targets


def info_nce(
    query: Tensor,
    target: Tensor,
    temperature: float,
    item_ids: Tensor | None = None,
    hit_ids: Tensor | None = None,
) -> InfoNCE:
    """InfoNCE (van den Oord et al., arXiv 1807.03748) of local queries against the targets of all ranks.

    More than QUERIES_PER_BLOCK queries are scored in blocks that the backward pass recomputes, so that memory grows
    with the batch and not with its square.

    Args:
        query: (B, D) unit embeddings.
        target: (M, D) unit embeddings, M >= B: row i < B is query i's positive, later rows are hard negatives.
            All ranks hold the same B and M.
        temperature: divides the cosine similarities; 0.05 in LamRA.
        item_ids: (B + M,) int64 of query and target rows, equal where two items are. A target is no negative of a query
            that it equals, whose positive it equals, or whose equal it is the positive of.
        hit_ids: (B + M,) int64 likewise, for the accuracy alone: a target that equals the positive, or that is an equal
            query's positive, is a hit.

    Raises:
        UserError: on every rank, that the ranks hold different numbers of rows.
    """
    if several_processes():
        _check_equal_sizes(query, target)
    targets = all_gather_with_grad(target).float()  # (W * M, D)
    labels = torch.arange(len(query), device=query.device) + process_rank() * len(target)  # (B,)
    if item_ids is not None:
        of_query, of_target = item_ids.split([len(query), len(target)])
        # Beside each target the query that it is the positive of; a hard negative stands for itself.
        item_ids = torch.stack([of_target, torch.cat([of_query, of_target[len(query) :]])], dim=1)  # (M, 2)
        item_ids = all_gather_with_grad(item_ids)  # (W * M, 2)
    if hit_ids is not None:
        of_query, of_target = hit_ids.split([len(query), len(target)])
        of_query = F.pad(of_query, (0, len(target) - len(query)), value=-1)  # (M,): a hard negative has none
        hit_ids = all_gather_with_grad(torch.stack([of_target, of_query], dim=1))  # (W * M, 2)
    blocks = list(zip(query.float().split(QUERIES_PER_BLOCK), labels.split(QUERIES_PER_BLOCK)))
    if len(blocks) == 1:
        losses = [_block_loss(*blocks[0], targets, item_ids, hit_ids, temperature)]
    else:
        losses = [
            checkpoint(_block_loss, *block, targets, item_ids, hit_ids, temperature, use_reentrant=False)
            for block in blocks
        ]
    loss, hits = (torch.stack(column).sum() / len(query) for column in zip(*losses))
    return InfoNCE(loss, hits.detach())


def distillation(
    query: Tensor, target: Tensor, teacher: Tensor, temperature: float, teacher_temperature: float
) -> Tensor:
    """Mean over local queries of KL(teacher || student) over the query's own positive and hard negatives.

    Both are softmaxes: of the teacher's scores divided by its temperature (Hinton et al., arXiv 1503.02531, without the
    factor of its square: the student has a temperature of its own), and of the cosines divided by the contrastive
    loss's. So LamRA-Rank teaches the retriever in U-MARVEL (arXiv 2507.14902). Candidates without a score are in
    neither. It needs nothing of other processes: the mean of the ranks' losses is that of the global batch.

    Args:
        query: (B, D) unit embeddings.
        target: (B + B * K, D) unit embeddings: the positives, then each query's K hard negatives.
        teacher: (B, 1 + K) scores of the positive and of the hard negatives, -inf for a candidate without.

    Returns:
        ().
    """
    positives, negatives = target[: len(query)].unsqueeze(1), target[len(query) :].unflatten(0, (len(query), -1))
    candidates = torch.cat([positives, negatives], dim=1).float()  # (B, 1 + K, D)
    # No matrix product, which TF32 could round.
    scores = (query.float().unsqueeze(1) * candidates).sum(dim=2) / temperature  # (B, 1 + K)
    without, least = teacher == -torch.inf, torch.finfo(torch.float32).min  # finite, also where no candidate has one
    student, wanted = (
        logits.masked_fill(without, least).log_softmax(dim=1).masked_fill(without, 0)
        for logits in (scores, teacher.float() / teacher_temperature)
    )
    return F.kl_div(student, wanted, reduction="sum", log_target=True) / len(query)


def _check_equal_sizes(query: Tensor, target: Tensor) -> None:
    """Before the gather, which would leave a part of its buffer unfilled, or abort on some ranks only."""
    mine = torch.tensor([[len(query), len(target)]], device=query.device)
    sizes = all_gather_with_grad(mine).tolist()  # (W, 2)
    if any(size != sizes[0] for size in sizes):
        listed = ", ".join(f"{queries} and {targets - queries}" for queries, targets in sizes)
        raise UserError(
            f"the processes hold different numbers of queries and hard negatives in this step ({listed}): every row of "
            "all --data_path sources must have equally many hard negatives, and every process equally many rows"
        )


def _block_loss(
    query: Tensor, labels: Tensor, targets: Tensor, item_ids: Tensor | None, hit_ids: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """Sums over a block of queries (b, D): the loss, and how often the own target or an equal item scores highest."""
    scores = inner_products(query, targets) / temperature  # (b, W * M), float32 also when the model is bf16
    if item_ids is not None:
        scores = scores.masked_fill(_false_negatives(labels, item_ids), -torch.inf)
    best = scores.argmax(dim=1)  # (b,)
    hits = best == labels
    if hit_ids is not None:
        target, query_of = hit_ids.unbind(dim=1)  # (W * M,)
        hits |= (target[best] == target[labels]) | (query_of[best] == query_of[labels])
    return F.cross_entropy(scores, labels, reduction="sum"), hits.float().sum()


def _false_negatives(labels: Tensor, item_ids: Tensor) -> Tensor:
    """(b, W * M): which targets, other than the own, equal the query, equal its target, or belong to an equal query.

    Args:
        labels: (b,) each query's own target.
        item_ids: (W * M, 2) of each target, and of the query that it is the positive of.
    """
    target, query = item_ids.unbind(dim=1)  # (W * M,)
    own_target, own_query = item_ids[labels].unsqueeze(1).unbind(dim=2)  # (b, 1)
    equal = (target == own_query) | (target == own_target) | (query == own_query)  # (b, W * M)
    return equal.scatter(1, labels.unsqueeze(1), False)
