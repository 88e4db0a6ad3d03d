"""Approximate search of an index by IVF-PQ: learned on request, with its recall against exact search."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lamra.common.files import read_json, whole_file
from lamra.eval.index.held import batches

if TYPE_CHECKING:
    from lamra.eval.index.index import Index

RECALL = "ivf_pq.json"
LEAST_FOR_PQ = 256  # vectors; a code of 8 bits has so many centres to learn
MEASURED = 100  # items that search for their neighbours to measure the recall
ITERATIONS = 15  # of k-means; LanceDB's 50 take three times as long
WANTED = 0.95  # recall@10
FEWEST = 20  # partitions that a search looks through
REFINE = 30  # times k candidates are scored once more with their whole vectors


def build(index: Index) -> float:
    """Learn what the search goes through, unless it stands and the items since then are no more than those it was
    learned from; for the first process.

    Then so many partitions are looked through, twice as many each time, that WANTED of the exact 10 nearest are found.

    Returns:
        The recall@10 against exact search, which is kept in ivf_pq.json with the number of partitions: of MEASURED
        items of the index as queries, each without itself.
    """
    from lancedb.index import IvfPq

    count, size = len(index), index.table.schema.field("vector").type.list_size
    learned = kept(index).get("learned_from", 0) if index.is_approximate else 0
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
    recall, queries = 0.0, _Queries.of(index, 10)
    for probes in _doubled(_partitions(learned)):
        recall = queries.recall(index, probes)
        if recall >= WANTED:
            break
    about = {"recall@10": recall, "queries": len(queries.keys), "items": count, "learned_from": learned}
    with whole_file(index.folder / RECALL) as file:
        file.write(json.dumps(about | {"partitions": probes}, indent=1) + "\n")
    return recall


def drop(index: Index) -> None:
    """Search exactly from here on; for the first process."""
    for learned in index.table.list_indices():
        index.table.drop_index(learned.name)
    (index.folder / RECALL).unlink(missing_ok=True)


def partitions_of(index: Index) -> int:
    """How many partitions its search looks through."""
    return kept(index).get("partitions", FEWEST)


class _Queries(NamedTuple):
    """Items of an index, drawn with a fixed seed, and what is nearest to each.

    Attributes:
        vectors: (Q, D).
        nearest: the keys of the exact k nearest to each, without itself.
    """

    keys: list[str]
    vectors: np.ndarray
    nearest: list[list[str]]

    @classmethod
    def of(cls, index: Index, k: int) -> _Queries:
        drawn = np.random.default_rng(0).permutation(len(index))[:MEASURED]
        taken = index.table.take_offsets(sorted(drawn.tolist())).select(["key", "vector"]).to_arrow()
        keys, vectors = taken["key"].to_pylist(), np.array(taken["vector"].to_pylist(), np.float32)
        return cls(keys, vectors, [_others(of, key, k) for key, of in zip(keys, _exact(index, vectors, k + 1))])

    def recall(self, index: Index, partitions: int) -> float:
        """The share of the nearest that the search finds."""
        shares = []
        for key, vector, nearest in zip(*self):
            hits = index.nearest(vector, len(nearest) + 1, partitions=partitions)
            found = _others([hit.key for hit in hits], key, len(nearest))
            shares.append(len(set(nearest) & set(found)) / max(1, len(nearest)))
        return float(np.mean(shares))


def _others(keys: list[str], key: str, k: int) -> list[str]:
    return [other for other in keys if other != key][:k]


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
    """That are learned from so many items."""
    return max(1, round(count**0.5))


def _doubled(most: int) -> Iterator[int]:
    """FEWEST, twice as many, ..., all."""
    probes = FEWEST
    while probes < most:
        yield probes
        probes *= 2
    yield most


def kept(index: Index) -> dict[str, Any]:
    """What ivf_pq.json says; empty where nothing is learned."""
    path = index.folder / RECALL
    return read_json(path) if path.is_file() else {}
