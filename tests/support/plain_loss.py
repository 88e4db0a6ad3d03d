"""InfoNCE and its options as their papers write them: one process, float64, a sum for each row."""

from __future__ import annotations

import torch
from torch import Tensor

from lamra.models.losses import LossOptions

OPTIONS = {
    "plain": LossOptions(),
    "symmetric": LossOptions(symmetric=True),
    "margin": LossOptions(false_negative_margin=0.1),
    "above": LossOptions(false_negative_above=0.5),
    "hardness": LossOptions(hardness_weight=9.0),
    "all": LossOptions(True, 0.3, 0.8, 2.0),
}


def plain_loss(
    query: Tensor, target: Tensor, temperature: Tensor, item_ids: Tensor | None, options: LossOptions
) -> tuple[Tensor, float]:
    """The loss of B queries and M targets, B positives first, and the share of negatives dropped for their score."""
    size, scores = len(query), query.double() @ target.double().T  # (B, M)
    numbers = torch.arange(size + len(target)) if item_ids is None else item_ids
    of_query, of_target = numbers[:size].tolist(), numbers[size:].tolist()

    def compared(i: int, j: int) -> bool:
        """Whether target j is a negative of query i, for what the items are."""
        belongs_to_equal = j < size and of_query[j] == of_query[i]
        return i != j and of_target[j] not in (of_query[i], of_target[i]) and not belongs_to_equal

    def loss_of(own: Tensor, negatives: list[Tensor]) -> tuple[Tensor, int]:
        kept = negatives
        if options.false_negative_margin is not None:
            kept = [score for score in kept if score <= own + options.false_negative_margin]
        if options.false_negative_above is not None:
            kept = [score for score in kept if score <= options.false_negative_above]
        weights = [(options.hardness_weight * score.detach()).exp() for score in kept]
        below = (own / temperature).exp() + sum(w * (score / temperature).exp() for w, score in zip(weights, kept))
        return below.log() - own / temperature, len(negatives) - len(kept)

    def mean(columns: int, pairs: list[tuple[Tensor, int]]) -> tuple[Tensor, float]:
        loss, dropped = zip(*pairs)
        return torch.stack(loss).mean(), sum(dropped) / (size * (columns - 1))

    every = range(size)
    forth, dropped = mean(
        len(target),
        [loss_of(scores[i, i], [scores[i, j] for j in range(len(target)) if compared(i, j)]) for i in every],
    )
    if not options.symmetric:
        return forth, dropped
    back, dropped_back = mean(
        size, [loss_of(scores[i, i], [scores[j, i] for j in every if i != j and compared(j, i)]) for i in every]
    )
    return (forth + back) / 2, (dropped + dropped_back) / 2
