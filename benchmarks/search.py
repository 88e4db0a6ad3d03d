"""Exact search of a synthetic pool on disk within a memory limit, and what M-BEIR's global pool would take.

python benchmarks/search.py --rows 1000000 --dimension 256 --search_memory 0.5
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lamra.eval.cache.shards import Shards
from lamra.eval.search import Blocks, search

GLOBAL_POOL = 5_600_000
SHARD_BYTES = 2**26


def make_pool(folder: Path, rows: int, dimension: int) -> Shards:
    """Random unit vectors, written shard by shard."""
    rng, files, shard = np.random.default_rng(0), [], SHARD_BYTES // (4 * dimension)
    for start in range(0, rows, shard):
        part = rng.standard_normal((min(shard, rows - start), dimension), dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        files.append(folder / f"{start // shard:05d}.npy")
        np.save(files[-1], part)
    return Shards(files)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--search_memory", type=float, default=0.5, help="GiB")
    args = parser.parse_args()

    blocks = Blocks.within(args.search_memory * 2**30, args.dimension, args.depth)
    with tempfile.TemporaryDirectory() as folder:
        gallery = make_pool(Path(folder), args.rows, args.dimension)
        before = peak_gib()
        # Each query is a candidate with a little noise, so that its right answer is known.
        wanted = torch.arange(args.queries) * (args.rows // args.queries)
        noise = np.random.default_rng(1).standard_normal((args.queries, args.dimension), dtype=np.float32)
        query = np.concatenate([gallery[i : i + 1] for i in wanted.tolist()]) + 0.1 * noise / args.dimension**0.5
        start = time.perf_counter()
        _, ranking = search(query, gallery, args.depth, blocks)
        seconds = time.perf_counter() - start
    passes = -(-args.queries // blocks.queries)
    result = {
        "rows": args.rows,
        "dimension": args.dimension,
        "queries": args.queries,
        "blocks": blocks._asdict(),
        "passes_over_the_pool": passes,
        "seconds": round(seconds, 1),
        "gflop_per_second": round(2 * args.rows * args.dimension * args.queries / seconds / 1e9, 1),
        "peak_rss_gib": round(peak_gib(), 2),
        "peak_rss_gib_before_the_search": round(before, 2),
        "right_answer_first": (ranking[:, 0] == wanted).float().mean().item(),
        f"hours_for_{GLOBAL_POOL}_rows_of_this_dimension": round(seconds * GLOBAL_POOL / args.rows / 3600, 2),
    }
    print(
        f"{args.rows:,} x {args.dimension}, {args.queries} queries, top {args.depth}, {torch.get_num_threads()} threads"
    )
    print(f"{seconds:.1f} s, {result['gflop_per_second']} GFLOP/s, peak RSS {result['peak_rss_gib']} GiB")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
