"""How large M-BEIR is: rows, kinds and texts, for benchmarks that have none of its files.

Rows are those of the paper's table (arXiv 2311.17136, in thousands there). They add up to what is known of the files:
1,150,203 training queries, 190 thousand of test, 5.6 million candidates.
"""

from __future__ import annotations

from typing import NamedTuple

from lamra.datasets.mbeir.layout import TASKS

UP_TRAIN_ROWS = 1_332_790  # of mbeir_union_up_train.jsonl, which repeats queries of small sets
# The published union pools have 2.43 GB (test) and 0.478 GB (training): 434 bytes a row of the 5.6 million.
TRAIN_POOL_ROWS = 1_100_000  # at as many bytes a row


class Size(NamedTuple):
    """A task's rows, and what its queries and candidates are made of, as M-BEIR spells modalities.

    Attributes:
        positives: of a query, on average; as the paper's table has them, rounded.
    """

    query: str
    candidate: str
    train: int
    test: int
    pool: int
    positives: int


_ROWS = (  # train, test, pool: thousands
    (99, 20, 542), (100, 24.8, 5), (15, 1.7, 201), (16, 2.4, 544), (26, 3.2, 1000), (17, 2.5, 403),
    (100, 20, 537), (113, 5, 25), (15, 4.8, 61), (16, 2, 40), (150, 50, 676), (141, 11, 611), (16, 6, 74),
    (26, 4, 21), (157, 14.7, 335), (143, 17.6, 481),
)  # fmt: skip
_KINDS = (
    *3 * [("text", "image")], ("text", "text"), *2 * [("text", "image,text")], *3 * [("image", "text")],
    ("image", "image"), *2 * [("image,text", "text")], *2 * [("image,text", "image")],
    *2 * [("image,text", "image,text")],
)  # fmt: skip
_POSITIVES = (1, 1, 3, 2, 3, 1, 1, 5, 1, 1, 9, 7, 1, 1, 18, 8)
SIZES = {
    task.name: Size(query, candidate, 1000 * train, round(1000 * test), 1000 * pool, positives)
    for task, (query, candidate), (train, test, pool), positives in zip(TASKS, _KINDS, _ROWS, _POSITIVES, strict=True)
}
SMALL = {"fashion200k", "webqa", "edis", "nights", "fashioniq", "cirr"}  # whose training queries are repeated
