"""A graph cut into communities of one size that keep edges inside: which rows are hard for one another.

What B3 (Thirukovalluru et al., arXiv 2505.11293) asks METIS for. Here communities grow, as METIS's first partition does
(Karypis and Kumar 1998, greedy graph growing), but on the whole graph, not on one that was coarsened, and nothing moves
afterwards; in exchange each has exactly its size and some nodes are kept apart. NumPy alone, and no random draw: the
same graph gives the same communities on every machine.

Dimension letters: N nodes, E edges, K nodes of a community.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lamra.common.arrays import distinct


class NotApart(Exception):
    """Nodes of one key outnumber the communities, or there is no other way to keep them apart."""


class Graph(NamedTuple):
    """An undirected graph: the neighbours of node i stand at starts[i] to starts[i + 1].

    Attributes:
        starts: (N + 1,) int64.
        neighbours: (2 E,) int32, each edge at both of its nodes; those of a node rise.
        weights: (2 E,) float32, in how many directions the edge was given: 1 or 2.
    """

    starts: np.ndarray
    neighbours: np.ndarray
    weights: np.ndarray

    @classmethod
    def of_edges(cls, source: np.ndarray, target: np.ndarray, nodes: int) -> Graph:
        """The graph of directed edges, each between two nodes; an edge that is given twice counts once."""
        edges = np.minimum(source, target).astype(np.int64)
        edges *= nodes
        edges += np.maximum(source, target)
        edges *= 2
        edges += source > target
        edges.sort()
        edges = edges[np.diff(edges, prepend=-1) != 0]
        (first,) = np.nonzero(np.diff(edges >> 1, prepend=-1))
        weights = np.diff(first, append=len(edges)).astype(np.float32)
        edges = edges[first] >> 1
        low, high = (edges // nodes).astype(np.int32), (edges % nodes).astype(np.int32)
        del edges, first
        at = np.concatenate([high, low])  # (2 E,); what a node finds at its lower neighbours comes first
        order = np.argsort(at, kind="stable")
        starts = np.zeros(nodes + 1, np.int64)
        np.cumsum(np.bincount(at, minlength=nodes), out=starts[1:])
        return cls(starts, np.concatenate([low, high])[order], np.concatenate([weights, weights])[order])

    def of(self, node: int) -> tuple[np.ndarray, np.ndarray]:
        """The neighbours of a node and the weights of its edges."""
        part = slice(self.starts[node], self.starts[node + 1])
        return self.neighbours[part], self.weights[part]


class Keys:
    """What nodes must not share with another node of their community; most nodes have no such key.

    Args:
        node, key: (M,) each, a key of a node; only those that several nodes have count.
    """

    def __init__(self, node: np.ndarray, key: np.ndarray, nodes: int):
        key, node = np.divmod(distinct(key.astype(np.int64) * nodes + node), nodes)  # a node may have a key twice
        _, number, count = np.unique(key, return_inverse=True, return_counts=True)
        shared = count[number] > 1
        node, number = node[shared], number[shared]
        order = np.argsort(node, kind="stable")
        self._keys = number[order].astype(np.int32)
        self._starts = np.searchsorted(node[order], np.arange(nodes + 1))
        self.most = int(count.max(initial=0))
        self.nodes = int((np.diff(self._starts) > 0).sum())

    def of(self, node: int) -> list[int]:
        return self._keys[self._starts[node] : self._starts[node + 1]].tolist()


def partition(graph: Graph, size: int, tasks: np.ndarray, keys: Keys) -> tuple[list[list[int]], list[int]]:
    """Communities of exactly `size` nodes, and fewer nodes that are left over.

    A community holds nodes of one task; what is left of each task, fewer nodes than a community has, fills communities
    together.

    Args:
        graph: has no edge between nodes of two tasks.
        tasks: (N,) int.
        keys: no two nodes of a community have the same.

    Raises:
        NotApart: no such communities were found.
    """
    communities: list[list[int]] = []
    rest: list[list[int]] = []
    for grown in grow(graph, size, keys):
        (communities if len(grown) == size else rest).append(grown)
    rest.sort(key=len, reverse=True)
    fragments = [node for grown in rest for node in grown]
    left: list[int] = []
    for task in np.unique(tasks[fragments]) if fragments else []:
        whole, short = fill([node for node in fragments if tasks[node] == task], size, keys)
        communities += whole
        left += [node for community in short for node in community]
    whole, short = fill(left, size, keys)
    communities += whole
    return settle(communities, [node for community in short for node in community], size, keys)


def grow(graph: Graph, size: int, keys: Keys) -> Iterator[list[int]]:
    """Communities of at most `size` nodes, each node in one; they are shorter where no neighbour is left to take.

    A community begins at the free node of fewest neighbours, and takes the neighbour that shares most neighbours with
    it, then again and again the node with most weight to the community; of several that with least weight to nodes that
    are still free, which else would be left alone.
    """
    starts, _, weights = graph
    nodes = len(starts) - 1
    free, weight_to = np.ones(nodes, bool), np.zeros(nodes, np.float32)
    sums = np.append(0, np.cumsum(weights, dtype=np.float64))
    weight_to_free = (sums[starts[1:]] - sums[starts[:-1]]).astype(np.float32)  # (N,)
    less = np.float32(1 / (2 * weight_to_free.max(initial=1) + 2))  # below any difference of two weights
    for seed in np.argsort(np.diff(starts), kind="stable").tolist():
        if not free[seed]:
            continue
        community, taken, node = [seed], set(keys.of(seed)), seed
        border, touched = np.zeros(0, np.int32), []
        while True:
            free[node] = False
            near, weight = graph.of(node)
            weight_to_free[near] -= weight
            open_ = free[near]
            near = near[open_]
            weight_to[near] += weight[open_]
            touched.append(near)
            if len(community) == size:
                break
            border = np.concatenate([border[free[border]], near])
            if len(community) == 1:
                shared = [len(np.intersect1d(near, graph.of(other)[0], assume_unique=True)) for other in near]
                score = np.array(shared, dtype=np.float32) + weight[open_]
            else:
                score = weight_to[border] - less * weight_to_free[border]
            node = _best(border, score, taken, keys)
            if node is None:
                break
            community.append(node)
            taken.update(keys.of(node))
        for near in touched:
            weight_to[near] = 0
        yield community


def _best(nodes: np.ndarray, score: np.ndarray, taken: set[int], keys: Keys) -> int | None:
    """The node of highest score among those that have none of the keys; the first of several."""
    while len(nodes) and score.max() > -np.inf:
        node = int(nodes[score.argmax()])
        if taken.isdisjoint(keys.of(node)):
            return node
        score[nodes == node] = -np.inf
    return None


def fill(nodes: Iterable[int], size: int, keys: Keys) -> tuple[list[list[int]], list[list[int]]]:
    """Nodes in their order into the first community that they fit; those of `size` nodes, and those with fewer."""
    whole: list[list[int]] = []
    short: list[tuple[list[int], set[int]]] = []
    for node in nodes:
        own = keys.of(node)
        fits = next((of for of in short if of[1].isdisjoint(own)), None)
        if fits is None:
            short.append(fits := ([], set()))
        community, taken = fits
        community.append(node)
        taken.update(own)
        if len(community) == size:
            whole.append(community)
            short = [of for of in short if of[0] is not community]
    return whole, [community for community, _ in short]


def settle(communities: list[list[int]], left: list[int], size: int, keys: Keys) -> tuple[list[list[int]], list[int]]:
    """All communities that there can be, with the nodes of `left`: one that fits none changes places until all do.

    Raises:
        NotApart: as partition.
    """
    communities = [list(community) for community in communities]
    # Those with keys first: they find room while there is most.
    left = sorted(left, key=lambda node: -len(keys.of(node)))
    while len(left) >= size:
        begun: list[int] = []
        taken: set[int] = set()
        for _ in range(size):
            node = next((node for node in left if taken.isdisjoint(keys.of(node))), None)
            if node is None:
                node = _exchange(communities, left, taken, keys)
            else:
                left.remove(node)
            begun.append(node)
            taken.update(keys.of(node))
        communities.append(begun)
    return communities, left


def _exchange(communities: list[list[int]], left: list[int], taken: set[int], keys: Keys) -> int:
    """A node of another community whose keys are not among `taken`, after one of `left` took its place there."""
    for community in reversed(communities):
        held = [set(keys.of(node)) for node in community]
        for place, node in enumerate(community):
            if not taken.isdisjoint(held[place]):
                continue
            others = set().union(*held[:place], *held[place + 1 :])
            fits = next((other for other in left if others.isdisjoint(keys.of(other))), None)
            if fits is not None:
                left.remove(fits)
                community[place] = fits
                return node
    raise NotApart
