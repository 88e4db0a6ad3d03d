"""A ranking by its ids, read as the product reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lamra.datasets.rankings import read_ranking


class _Named(list[str]):
    """Items of whatever ids are looked for."""

    def find(self, ids: Sequence[str]) -> list[int]:
        for identifier in dict.fromkeys(ids):
            if identifier not in self:
                self.append(identifier)
        return [self.index(identifier) for identifier in ids]

    def id(self, row: int) -> str:
        return self[row]


def ranked_ids(path: str | Path) -> dict[str, tuple[list[str], list[float]]]:
    """qid -> the ids of its candidates, best first, and their scores; of lines, or of upstream's three files."""
    queries, gallery = _Named(), _Named()
    ranking = read_ranking(path, queries, gallery)
    return {queries.id(query): ([gallery.id(row) for row in rows], scores) for query, rows, scores in ranking}
