"""Tables of recall on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lamra.datasets.tasks import KS

Recalls = Mapping[str, Mapping[str, float]]  # name of a run -> content of its metrics.json

DIRECTIONS = {"image_retrieval_recall": "image retrieval", "text_retrieval_recall": "text retrieval"}

# Qwen2-VL-7B after stage 1 on the Flickr30K 1K test split, zero-shot, as the practice this project starts from reports.
PRACTICE_STAGE1_FLICKR30K = {
    "image_retrieval_recall@1": 0.8056,
    "image_retrieval_recall@5": 0.9536,
    "image_retrieval_recall@10": 0.9732,
    "text_retrieval_recall@1": 0.9140,
    "text_retrieval_recall@5": 0.9910,
    "text_retrieval_recall@10": 0.9970,
}


def print_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, name_width: int = 0, cell_width: int = 0
) -> None:
    """Print columns of text: the first aligned to the left, the others to the right, two blanks between them.

    Args:
        heads: the first line.
        rows: lines of as many cells as `heads`.
        name_width: least width of the first column.
        cell_width: least width of the others, their two blanks included.
    """
    lines = [heads, *rows]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    for name, *cells in lines:
        widths = (max(width + 2, cell_width) for width in others)
        print(f"{name:<{max(first, name_width)}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths)))


def print_recalls(rows: Recalls) -> None:
    """Print one line a run: recall@1, 5 and 10 of image retrieval, then of text retrieval."""
    name_width = max(map(len, rows), default=0)
    group = len(KS) * len("  0.1234")
    print(" " * name_width + "".join(f"  {title:>{group}}" for title in DIRECTIONS.values()))
    heads, lines = [""], [[name] for name in rows]
    for direction in DIRECTIONS:
        heads += ["", *(f"R@{k}" for k in KS)]  # an empty column sets the directions apart
        for line, recalls in zip(lines, rows.values()):
            line += ["", *(f"{recalls[f'{direction}@{k}']:.4f}" for k in KS)]
    print_table(heads, lines)
