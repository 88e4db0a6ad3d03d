"""The training pairs of a miniature M-BEIR."""

from __future__ import annotations

import json
import random
from pathlib import Path

from lamra.datasets.mbeir.instructions import Instructions
from lamra.datasets.mbeir.layout import INSTRUCTIONS, TRAIN_QUERIES, global_pool
from lamra.datasets.mbeir.pairs import MBEIRPairs
from lamra.datasets.mbeir.rows import CANDIDATE, QUERY, Rows


def pairs_of(mbeir, **options) -> MBEIRPairs:
    pool, queries = Rows(mbeir / global_pool("train"), mbeir, CANDIDATE), Rows(mbeir / TRAIN_QUERIES, mbeir, QUERY)
    return MBEIRPairs(queries, pool, Instructions(mbeir / INSTRUCTIONS), **options)


def rank_at_random(pairs: MBEIRPairs, path: Path, depth: int) -> Path:
    """Write `depth` candidates of each query, none of them a positive, as mine_rerank.py does."""
    rng, lines = random.Random(0), []
    for row in range(len(pairs)):
        answers = set(pairs.answers(row))
        wrong = [candidate for candidate in range(len(pairs.pool)) if candidate not in answers]
        for rank, candidate in enumerate(rng.sample(wrong, depth), start=1):
            line = {"qid": pairs.queries.id(row), "did": pairs.pool.id(candidate), "score": 1 / rank, "rank": rank}
            lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines))
    return path
