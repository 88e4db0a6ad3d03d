"""The training pairs of a miniature M-BEIR."""

from __future__ import annotations

from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import INSTRUCTIONS, TRAIN_QUERIES, global_pool
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows


def pairs_of(mbeir, **options) -> MBEIRPairs:
    pool, queries = Rows(mbeir / global_pool("train"), mbeir, CANDIDATE), Rows(mbeir / TRAIN_QUERIES, mbeir, QUERY)
    return MBEIRPairs(queries, pool, Instructions(mbeir / INSTRUCTIONS), **options)
