"""The loss over first dimensions and the search in smaller vectors, from their formulas, to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def matryoshka_reference(
    query: torch.Tensor, target: torch.Tensor, temperature: float, sizes: Sequence[int]
) -> torch.Tensor:
    """In float64, from the formula."""
    found = []
    for size in (None, *sizes):
        q, t = (x.double()[:, :size] for x in (query, target))
        if size:
            q, t = (x / x.norm(dim=1, keepdim=True) for x in (q, t))
        scores = q @ t.T / temperature
        found.append((scores.logsumexp(dim=1) - scores.diagonal()).mean())
    return sum(found) / len(found)


def brute_force(
    query: np.ndarray, gallery: np.ndarray, k: int, truncate_dim=None, vectors="float32", rescore=0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and indices by a full sort of (higher score, lower index) of scores in float64, of float32 bytes."""

    def cut(rows: np.ndarray) -> np.ndarray:
        if truncate_dim is None:
            return rows
        norms = np.sqrt((rows[:, :truncate_dim].astype(np.float32) ** 2).sum(axis=1, keepdims=True))
        return rows[:, :truncate_dim] / np.maximum(norms, 1e-12)

    stored = cut(gallery)
    if vectors == "int8":
        scales = np.abs(stored).max(axis=1, keepdims=True) / np.float32(127)
        stored = np.round(stored / np.maximum(scales, np.finfo(np.float32).tiny)).astype(np.int8) * scales
    elif vectors == "binary":
        stored = np.where(stored > 0, 1, -1) / np.sqrt(stored.shape[1])
    scores = cut(query).astype(np.float64) @ stored.astype(np.float64).T
    # What float32 cannot tell apart ties.
    order = np.argsort(-scores.round(6), axis=1, kind="stable")
    if rescore:
        candidates = np.sort(order[:, :rescore], axis=1)
        scores = query.astype(np.float64) @ gallery.astype(np.float64).T
        of_candidates = np.take_along_axis(scores, candidates, axis=1)
        best = np.argsort(-of_candidates.round(6), axis=1, kind="stable")
        order = np.take_along_axis(candidates, best, axis=1)
    order = order[:, :k]
    return np.take_along_axis(scores, order, axis=1), order
