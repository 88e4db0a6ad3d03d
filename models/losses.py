"""The contrastive loss, and what a retriever learns from a reranker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lamra.common.errors import UserError
from lamra.common.gather import all_gather_with_grad
from lamra.common.processes import process_rank, several_processes
from lamra.models.float32 import inner_products
from lamra.models.vectors import truncated

QUERIES_PER_BLOCK = 1024


class InfoNCE(NamedTuple):
    loss: Tensor  # (), mean over this rank's queries
    accuracy: Tensor  # (), share of queries whose own target, or an equal item, scores highest of all ranks' targets
    false_negatives: Tensor  # (), share of all negatives that LossOptions drop for their score


class LossOptions(NamedTuple):
    """What may be added to InfoNCE. Scores are cosines; masks and weights are constants to the gradient.

    Attributes:
        symmetric: the mean of both directions, as CLIP's (arXiv 2103.00020): also each positive against all queries. A
            hard negative belongs to no query and is no row of the second direction.
        false_negative_margin: a negative that scores more than so much above the row's own positive is dropped
            (Qwen3-Embedding, arXiv 2506.05176: 0.1).
        false_negative_above: so is one that scores more than this.
        hardness_weight: alpha of LLaVE (arXiv 2503.04812): in the denominator a negative of score s counts
            exp(alpha * s) times; 9 there, at a temperature of 0.02.
    """

    symmetric: bool = False
    false_negative_margin: float | None = None
    false_negative_above: float | None = None
    hardness_weight: float = 0.0

    @property
    def drop(self) -> bool:
        """Whether negatives are dropped for their score."""
        return self.false_negative_margin is not None or self.false_negative_above is not None


PLAIN = LossOptions()


def info_nce(
    query: Tensor,
    target: Tensor,
    temperature: float | Tensor,
    item_ids: Tensor | None = None,
    hit_ids: Tensor | None = None,
    options: LossOptions = PLAIN,
) -> InfoNCE:
    """InfoNCE (van den Oord et al., arXiv 1807.03748) of local queries against the targets of all ranks.

    More than QUERIES_PER_BLOCK queries are scored in blocks that the backward pass recomputes, so that memory grows
    with the batch and not with its square.

    Args:
        query: (B, D) unit embeddings.
        target: (M, D) unit embeddings, M >= B: row i < B is query i's positive, later rows are hard negatives.
            All ranks hold the same B and M.
        temperature: divides the cosine similarities; 0.05 in LamRA. A tensor () takes a gradient.
        item_ids: (B + M,) int64 of query and target rows, equal where two items are. A target is no negative of a query
            that it equals, whose positive it equals, or whose equal it is the positive of.
        hit_ids: (B + M,) int64 likewise, for the accuracy alone: a target that equals the positive, or that is an equal
            query's positive, is a hit.

    Raises:
        UserError: on every rank, that the ranks hold different numbers of rows.
    """
    if several_processes():
        _check_equal_sizes(query, target)
    size = len(query)
    if item_ids is not None:
        of_query, of_target = item_ids.split([size, len(target)])
        # Beside each target the query that it is the positive of; a hard negative stands for itself.
        item_ids = torch.stack([of_target, torch.cat([of_query, of_target[size:]])], dim=1)  # (M, 2)
    if hit_ids is not None:
        of_query, of_target = hit_ids.split([size, len(target)])
        of_query = F.pad(of_query, (0, len(target) - size), value=-1)  # (M,): a hard negative has none
        hit_ids = torch.stack([of_target, of_query], dim=1)  # (M, 2)
    forth = _one_direction(query, target, item_ids, hit_ids, temperature, options)
    if not options.symmetric:
        return forth
    if item_ids is not None:
        item_ids = item_ids[:size].flip(dims=[1])  # (B, 2): beside each query its positive
    back = _one_direction(target[:size], query, item_ids, None, temperature, options)
    return InfoNCE((forth.loss + back.loss) / 2, forth.accuracy, (forth.false_negatives + back.false_negatives) / 2)


def _one_direction(
    row: Tensor,
    candidate: Tensor,
    item_ids: Tensor | None,
    hit_ids: Tensor | None,
    temperature: float | Tensor,
    options: LossOptions,
) -> InfoNCE:
    """InfoNCE of local rows (B, D), of which row i belongs to the local candidate i, against all ranks' candidates.

    Args:
        candidate: (N, D), N >= B.
        item_ids, hit_ids: (N, 2) of each candidate, and of the row that it belongs to.
    """
    candidates = all_gather_with_grad(candidate).float()  # (W * N, D)
    labels = torch.arange(len(row), device=row.device) + process_rank() * len(candidate)  # (B,)
    item_ids, hit_ids = (ids if ids is None else all_gather_with_grad(ids) for ids in (item_ids, hit_ids))
    blocks = list(zip(row.float().split(QUERIES_PER_BLOCK), labels.split(QUERIES_PER_BLOCK)))
    block_loss = partial(
        _block_loss,
        candidates=candidates,
        item_ids=item_ids,
        hit_ids=hit_ids,
        temperature=temperature,
        options=options,
    )
    if len(blocks) == 1:
        sums = [block_loss(*blocks[0])]
    else:
        sums = [checkpoint(block_loss, *block, use_reentrant=False) for block in blocks]
    loss, hits, dropped = (torch.stack(column).sum() / len(row) for column in zip(*sums))
    negatives = max(1, len(candidates) - 1)
    return InfoNCE(loss, hits.detach(), dropped.detach() / negatives)


def matryoshka(
    loss_of: Callable[[Tensor, Tensor], InfoNCE], query: Tensor, target: Tensor, sizes: Sequence[int] | None
) -> InfoNCE:
    """The mean of a loss over whole embeddings and over their first dimensions (Kusupati et al., arXiv 2205.13147).

    Args:
        loss_of: takes query (B, D) and target (M, D) of any D, unit embeddings.
        sizes: so many first dimensions, of unit norm again, each a loss of its own beside the whole; None or none: the
            loss of the whole alone.

    Returns:
        The mean, all sizes weighing the same, and the accuracy of the whole embeddings.
    """
    whole = loss_of(query, target)
    if not sizes:
        return whole
    parts = [loss_of(truncated(query, size), truncated(target, size)).loss for size in sizes]
    return whole._replace(loss=torch.stack([whole.loss, *parts]).mean())


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
    row: Tensor,
    labels: Tensor,
    candidates: Tensor,
    item_ids: Tensor | None,
    hit_ids: Tensor | None,
    temperature: float | Tensor,
    options: LossOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over a block of rows (b, D): the loss, hits (the own candidate or an equal item scores highest), and how
    many negatives are dropped for their score.
    """
    cosines = inner_products(row, candidates)  # (b, W * N), float32 also when the model is bf16
    scores = cosines / temperature
    if item_ids is not None:
        scores = scores.masked_fill(_equal_items(labels, item_ids), -torch.inf)
    best = scores.argmax(dim=1)  # (b,)
    hits = best == labels
    if hit_ids is not None:
        candidate, row_of = hit_ids.unbind(dim=1)  # (W * N,)
        hits |= (candidate[best] == candidate[labels]) | (row_of[best] == row_of[labels])
    dropped = scores.new_zeros(())
    if options.drop:
        false = _false_negatives(cosines.detach(), labels, options)
        dropped = (false & scores.isfinite()).float().sum()
        scores = scores.masked_fill(false, -torch.inf)
    if options.hardness_weight:
        hardness = options.hardness_weight * cosines.detach()
        scores = scores + hardness.scatter(1, labels.unsqueeze(1), 0.0)
    return F.cross_entropy(scores, labels, reduction="sum"), hits.float().sum(), dropped


def _false_negatives(cosines: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
    """(b, W * N): which candidates, other than the own, score so high that they may well be right."""
    false = torch.zeros_like(cosines, dtype=torch.bool)
    if options.false_negative_margin is not None:
        false |= cosines > cosines.gather(1, labels.unsqueeze(1)) + options.false_negative_margin
    if options.false_negative_above is not None:
        false |= cosines > options.false_negative_above
    return false.scatter(1, labels.unsqueeze(1), False)


def _equal_items(labels: Tensor, item_ids: Tensor) -> Tensor:
    """(b, W * N): which candidates, other than the own, equal the row, equal its candidate, or belong to an equal row.

    Args:
        labels: (b,) each row's own candidate.
        item_ids: (W * N, 2) of each candidate, and of the row that it belongs to.
    """
    candidate, row = item_ids.unbind(dim=1)  # (W * N,)
    own_candidate, own_row = item_ids[labels].unsqueeze(1).unbind(dim=2)  # (b, 1)
    equal = (candidate == own_row) | (candidate == own_candidate) | (row == own_row)  # (b, W * N)
    return equal.scatter(1, labels.unsqueeze(1), False)
