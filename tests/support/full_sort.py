"""Rankings by a plain sort of every score, to compare the search with."""

from __future__ import annotations

import torch


def full_sort(query: torch.Tensor, gallery: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every score sorted by (higher score, lower index) in plain Python, which finds -0.0 == 0.0."""
    scores = (query @ gallery.T).tolist()
    order = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in scores]
    return torch.tensor([[row[i] for i in best] for row, best in zip(scores, order)]), torch.tensor(order)


def with_ties(rows: int, seed: int) -> torch.Tensor:
    """Small integers: exact products of which many are equal, also zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (rows, 3), generator=generator) * torch.tensor([1.0, -1.0, 1.0])
