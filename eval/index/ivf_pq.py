"""Approximate search of an index by IVF-PQ: learned on request, with its recall against exact search."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from lamra.common.files import read_json, whole_file
from lamra.eval.index.held import batches

if TYPE_CHECKING:
    from lamra.eval.index.index import Index

RECALL = "ivf_pq.json"
LEAST_FOR_PQ = 256  # vectors; a code of 8 bits has so many centres to learn
MEASURED = 100  # items that search for their neighbours to measure the recall
ITERATIONS = 15  # of k-means; LanceDB's 50 take three times as long
REFINE = 10  # times k candidates are scored once more with their whole vectors


def build(index: Index) -> float:
    """Learn what the search goes through, unless it stands and the items since then are no more than those it was
    learned from; for the first process.

    Returns:
        The recall@10 against exact search, which is kept in ivf_pq.json: of MEASURED items of the index as queries,
        each without itself.
    """
    from lancedb.index import IvfPq

    count, size, kept = len(index), index.table.schema.field("vector").type.list_size, index.folder / RECALL
    learned = read_json(kept)["learned_from"] if index.is_approximate and kept.is_file() else 0
    if count > 2 * learned:
        # 8 dimensions a code, or the divisor next to it.
        codes = next(size // width for width in (8, 4, 2, 1) if size % width == 0)
        plan = IvfPq(
            distance_type="dot",
            num_partitions=_partitions(count),
            num_sub_vectors=codes,
            max_iterations=ITERATIONS,
        )
        index.table.create_index("vector", config=plan, replace=True)
        learned = count
    found = recall(index)
    about = {"recall@10": found, "queries": min(MEASURED, count), "items": count, "learned_from": learned}
    with whole_file(kept) as file:
        file.write(json.dumps(about, indent=1) + "\n")
    return found


def drop(index: Index) -> None:
    """Search exactly from here on; for the first process."""
    for learned in index.table.list_indices():
        index.table.drop_index(learned.name)
    (index.folder / RECALL).unlink(missing_ok=True)


def looks_through(query: Any, count: int) -> Any:
    """LanceDB's query for `count` rows, with the partitions and candidates that it is to look at: a twentieth of the
    partitions, or 20."""
    partitions = _partitions(count)
    return query.nprobes(min(partitions, max(20, partitions // 20))).refine_factor(REFINE)


def recall(index: Index, k: int = 10) -> float:
    """The share of the exact k nearest that the search finds, over items drawn with a fixed seed."""
    drawn = np.random.default_rng(0).permutation(len(index))[:MEASURED]
    taken = index.table.take_offsets(sorted(drawn.tolist())).select(["key", "vector"]).to_arrow()
    queries = np.array(taken["vector"].to_pylist(), np.float32)  # (Q, D)
    shares = []
    for key, vector, exact in zip(taken["key"].to_pylist(), queries, _exact(index, queries, k + 1)):
        wanted = [other for other in exact if other != key][:k]
        found = [hit.key for hit in index.nearest(vector, k + 1) if hit.key != key][:k]
        shares.append(len(set(wanted) & set(found)) / max(1, len(wanted)))
    return float(np.mean(shares))


def _exact(index: Index, queries: np.ndarray, k: int) -> list[list[str]]:
    """The keys nearest to each of (Q, D) queries, best first: all vectors are read once."""
    scores, keys = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), object)
    for batch, vectors in batches(index.table, ["key"]):
        of_batch = np.broadcast_to(np.array(batch["key"].to_pylist(), object), (len(queries), len(batch)))
        scores, keys = np.hstack([scores, queries @ vectors.T]), np.hstack([keys, of_batch])  # (Q, up to k + n)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, keys = np.take_along_axis(scores, best, 1), np.take_along_axis(keys, best, 1)
    return keys.tolist()


def _partitions(count: int) -> int:
    return max(1, round(count**0.5))
