"""Mine batches: communities of training rows that are hard for one another. Started from lamra_ret/mine_batches.sh.

B3 (Thirukovalluru et al., arXiv 2505.11293): a teacher ranks the positives of all training pairs for each query. Row i
is joined to row j where j's positive has a rank of p + 1 to p + m for i, the first p being right too often; the graph
is cut into communities of K rows, and a batch of B rows is B / K communities. The ranking is what mine_rerank.py wrote.
B3's code keeps only edges that stand in both directions, here these have twice the weight; and what cuts the graph is
train/partition.py, not METIS.

Writes a file of communities (datasets/communities.py), which train_mbeir.py --batches reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lamra.common.cli import parse, run
from lamra.common.errors import UserError
from lamra.common.flags import FILE, OUT_FILE, flag, listed, require, require_path
from lamra.datasets.communities import Communities
from lamra.datasets.mbeir.layout import TrainingFiles
from lamra.models.digests import file_sha256
from lamra.train.partition import Graph, Keys, NotApart, partition

if TYPE_CHECKING:
    from lamra.datasets.mbeir.pairs import MBEIRPairs

CANDIDATES_TOGETHER = 1_000_000  # that are read
ROWS_TOGETHER = 100_000  # that are joined to others


@dataclass
class BatchArguments(TrainingFiles):
    mined: str = flag(
        "", "files of mine.sh, or upstream's json; several: A,B,C", path=FILE, several=True, source="mine.sh makes it"
    )
    size: int = flag(32, "rows of a community; a step of training holds whole ones", low=2, high=2**16)
    skip: int = flag(30, "a query's best candidates that are not taken, as they may be right", low=0)
    neighbours: int = flag(100, "candidates that are taken after them", low=1)
    output: str | None = flag(None, "default: batches.jsonl beside the first of --mined", path=OUT_FILE)

    def __post_init__(self):
        super().__post_init__()
        require(bool(self.mined), "mined", self.mined, "what mine.sh wrote")

    def check_paths(self) -> None:
        super().check_paths()
        require_path("output", self.file, OUT_FILE)

    @property
    def file(self) -> Path:
        return Path(self.output or Path(listed(self.mined)[0]).with_name("batches.jsonl"))


def main() -> None:
    (args,) = parse(BatchArguments)

    from lamra.datasets.mbeir.pairs import open_pairs  # torch and transformers, which --help does not wait for

    pairs = open_pairs(args.data_path, args.queries, args.pool, args.instructions)
    rows = len(pairs)
    require(args.size <= rows, "size", args.size, f"at most the {rows} rows of {pairs.queries.path}")
    tasks = np.zeros(rows, dtype=np.int32)
    for number, members in enumerate(pairs.groups.values()):
        tasks[members] = number
    positives = positives_of(pairs)
    source, target = hard_edges(pairs, listed(args.mined), positives, args.skip, args.neighbours)
    within = tasks[source] == tasks[target]
    between = int((~within).sum())
    if not within.any():
        raise UserError(
            f"--skip {args.skip}: no query of {args.mined} has more candidates that are a positive of another row of "
            "its task: mine deeper (TOP of mine.sh), or give a smaller --skip"
        )
    graph = Graph.of_edges(source[within], target[within], rows)
    del source, target, within
    keys = keys_of(pairs, positives)
    try:
        found, left = partition(graph, args.size, tasks, keys)
    except NotApart:
        raise UserError(
            f"--size {args.size}: rows of one positive cannot be kept apart, {keys.most} rows share one and there are "
            f"{rows // args.size} communities: give a smaller --size"
        ) from None
    names = list(pairs.groups)
    kinds = [np.unique(tasks[community]) for community in found]
    communities = Communities(
        np.array(found, dtype=np.int64),
        [names[kind[0]] if len(kind) == 1 else None for kind in kinds],
        np.array(left, dtype=np.int64),
    )
    communities.write(args.file, {"queries": file_sha256(pairs.queries.path), "pool": file_sha256(pairs.pool.path)})
    label = np.full(rows, -1, dtype=np.int32)
    label[communities.rows] = np.arange(len(found))[:, None]
    print(
        f"{len(found)} communities of {args.size} rows in {args.file}: {communities.tasks.count(None)} hold several "
        f"tasks, {len(left)} rows are left over\n"
        f"{keys.nodes} rows share a positive or a query with others, and no community holds two of these\n"
        f"{len(graph.neighbours) // 2} edges; {between} between tasks are not used"
    )
    print_tasks(graph, label, tasks, list(pairs.groups), args.size)


def positives_of(pairs: MBEIRPairs) -> tuple[np.ndarray, np.ndarray]:
    """(P,) rows of the pairs, rising, and of each a row of the pool that is its positive."""
    of_rows = [pairs.positives(row) for row in range(len(pairs))]
    row = np.repeat(np.arange(len(pairs), dtype=np.int32), [len(of_row) for of_row in of_rows])
    return row, np.fromiter((positive for of_row in of_rows for positive in of_row), np.int64, len(row))


def keys_of(pairs: MBEIRPairs, positives: tuple[np.ndarray, np.ndarray]) -> Keys:
    """Rows of one positive, or of one query, are no negatives of one another."""
    row, positive = positives
    query = len(pairs.pool) + pairs.queries.rows_of(pairs.queries.keys)
    return Keys(np.append(row, np.arange(len(pairs))), np.append(positive, query), len(pairs))


def hard_edges(
    pairs: MBEIRPairs, mined: list[str], positives: tuple[np.ndarray, np.ndarray], skip: int, neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """(E,) int32 rows, and of each a row whose positive ranks skip + 1 to skip + neighbours for its query.

    Ranks count positives of training rows alone, as B3's do. Where a positive belongs to several rows, an edge leads to
    one of them: the n-th of the rows that share a positive is joined to the n-th of those that share another, so that
    each such set of rows makes communities of its own and none takes the others' rows.

    Raises:
        UserError: as mined_rows.
    """
    from lamra.datasets.mbeir.mined import mined_rows

    rows = len(pairs)
    row, positive = positives
    by_positive = np.argsort(positive, kind="stable")
    owners = row[by_positive]
    owned, first_owner, owner_count = np.unique(positive[by_positive], return_index=True, return_counts=True)
    nth = _nth_of_its_kind(positive[np.searchsorted(row, np.arange(rows))])  # (rows,)

    queries, candidates = [], []  # first rows of queries, and places in `owned`
    for path in mined:
        for query, candidate in mined_rows(pairs, path, CANDIDATES_TOGETHER):
            place = np.minimum(np.searchsorted(owned, candidate), len(owned) - 1)
            known = owned[place] == candidate
            queries.append(query[known].astype(np.int32))
            candidates.append(place[known].astype(np.int32))
    query, candidate = np.concatenate(queries), np.concatenate(candidates)
    del queries, candidates
    if (np.diff(query) < 0).any():
        in_order = np.argsort(query, kind="stable")
        query, candidate = query[in_order], candidate[in_order]

    first_row = pairs.queries.rows_of(pairs.queries.keys)  # (rows,) which stands for a repeated query
    begin = np.searchsorted(query, first_row, side="left") + skip
    end = np.minimum(np.searchsorted(query, first_row, side="right"), begin + neighbours)
    count = np.maximum(end - begin, 0)
    sources, targets = [], []
    for start in range(0, rows, ROWS_TOGETHER):
        part = slice(start, start + ROWS_TOGETHER)
        source = np.repeat(np.arange(rows, dtype=np.int32)[part], count[part])
        before = np.cumsum(count[part]) - count[part]
        at = candidate[np.arange(len(source)) + np.repeat(begin[part] - before, count[part])]
        target = owners[first_owner[at] + nth[source] % owner_count[at]]
        sources.append(source[target != source])
        targets.append(target[target != source])
    return np.concatenate(sources), np.concatenate(targets)


def _nth_of_its_kind(kinds: np.ndarray) -> np.ndarray:
    """(N,) how many equal ones stand before each."""
    in_order = np.argsort(kinds, kind="stable")
    starts = np.flatnonzero(np.diff(kinds[in_order], prepend=-1))
    nth = np.empty(len(kinds), dtype=np.int64)
    nth[in_order] = np.arange(len(kinds)) - np.repeat(starts, np.diff(starts, append=len(kinds)))
    return nth


def print_tasks(graph: Graph, label: np.ndarray, tasks: np.ndarray, names: list[str], size: int) -> None:
    """For each task its edges, and the share of their weight that is inside communities, beside the share that is
    expected where its rows are dealt out by chance.

    Args:
        label: (N,) the community of each row, -1 for none.
        tasks: (N,) numbers of `names`.
    """
    degree = np.diff(graph.starts)
    task = np.repeat(tasks, degree)  # (2 E,)
    community = np.repeat(label, degree)
    inside = (community == label[graph.neighbours]) & (community >= 0)
    weight = np.bincount(task, graph.weights, minlength=len(names))
    kept = np.bincount(task, graph.weights * inside, minlength=len(names))
    for number, name in enumerate(names):
        own = degree[tasks == number]
        share, chance = kept[number] / max(weight[number], 1), min((size - 1) / max(len(own) - 1, 1), 1)
        print(
            f"{name}: {len(own)} rows with {own.mean():.1f} edges, {(own == 0).sum()} without; {share:.2%} of their "
            f"weight inside communities, {chance:.2%} by chance"
        )


if __name__ == "__main__":
    run(main)
