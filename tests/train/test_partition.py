"""Communities of one size: planted ones are found, edges are exact, and what must be apart stays apart."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lamra.train.partition import Graph, Keys, NotApart, partition


def no_keys(nodes: int) -> Keys:
    return Keys(np.zeros(0, np.int64), np.zeros(0, np.int64), nodes)


def planted(nodes: int, size: int, degree: int, noise: float) -> tuple[Graph, np.ndarray]:
    """Communities in which a share 1 - `noise` of a node's edges stays, and the community of each node."""
    rng = np.random.default_rng(0)
    members = rng.permutation(nodes).reshape(-1, size)
    community = np.empty(nodes, dtype=np.int64)
    community[members] = np.arange(len(members))[:, None]
    source = np.repeat(np.arange(nodes), degree)
    inside = members[community[source], rng.integers(0, size, len(source))]
    target = np.where(rng.random(len(source)) < noise, rng.integers(0, nodes, len(source)), inside)
    return Graph.of_edges(source[source != target], target[source != target], nodes), community


def test_a_graph_is_its_edges():
    """Against plain dictionaries; edges repeat, in one direction and in both."""
    rng = np.random.default_rng(1)
    source, target = rng.integers(0, 30, (2, 400))
    source, target = source[source != target], target[source != target]
    graph, given = Graph.of_edges(source, target, 30), set(zip(source.tolist(), target.tolist()))
    for node in range(30):
        neighbours, weights = graph.of(node)
        expected = {other: ((node, other) in given) + ((other, node) in given) for other in range(30)}
        expected = {other: weight for other, weight in expected.items() if weight}
        assert dict(zip(neighbours.tolist(), weights.tolist())) == expected and (np.diff(neighbours) > 0).all()


@pytest.mark.parametrize(("size", "degree", "noise"), [(32, 50, 0.6), (32, 10, 0.5), (20, 30, 0.7)])
def test_planted_communities_are_found(size, degree, noise):
    graph, community = planted(1920, size, degree, noise)
    found, left = partition(graph, size, np.zeros(1920, int), no_keys(1920))
    assert sorted(sum(found, left)) == list(range(1920)) and not left and {len(of) for of in found} == {size}
    right = sum(max(Counter(community[of].tolist()).values()) for of in found)
    assert right / 1920 > 0.9
    assert partition(graph, size, np.zeros(1920, int), no_keys(1920)) == (found, left)


@pytest.mark.parametrize("seed", range(20))
def test_every_node_once_and_what_shares_a_key_apart(seed):
    """Random graphs, some nodes without an edge, of tasks of random sizes."""
    rng = np.random.default_rng(seed)
    nodes, size = int(rng.integers(20, 400)), int(rng.integers(2, 9))
    tasks = rng.integers(0, rng.integers(1, 5), nodes)
    source, target = rng.integers(0, nodes, (2, 5 * nodes))
    within = (tasks[source] == tasks[target]) & (source != target)
    graph = Graph.of_edges(source[within], target[within], nodes)
    node, key = rng.integers(0, nodes, nodes), rng.integers(0, nodes // 2, nodes)
    keys = Keys(node, key, nodes)
    keys_of = [set(key[node == of].tolist()) for of in range(nodes)]
    shared = {name for name in key.tolist() if len(set(node[key == name].tolist())) > 1}
    assert keys.nodes == sum(bool(own & shared) for own in keys_of)
    found, left = partition(graph, size, tasks, keys)
    assert sorted(sum(found, left)) == list(range(nodes)) and len(left) == nodes % size
    assert {len(of) for of in found} == {size}
    for community in found:
        every = [name for of in community for name in keys_of[of]]
        assert len(every) == len(set(every))
    mixed = sum(len(set(tasks[of].tolist())) > 1 for of in found)
    assert mixed <= len(set(tasks.tolist())) + 2


def test_the_last_nodes_change_places_until_all_are_apart():
    """Twelve nodes of three communities: three share a key, and would be the last to be placed."""
    clique = [(i, j) for i in range(9) for j in range(9) if i // 4 == j // 4 and i != j]
    graph = Graph.of_edges(*np.array(clique).T, 12)
    keys = Keys(np.array([9, 10, 11]), np.array([0, 0, 0]), 12)
    found, left = partition(graph, 4, np.zeros(12, int), keys)
    assert len(found) == 3 and not left and all(sum(of > 8 for of in community) == 1 for community in found)
    with pytest.raises(NotApart):
        partition(graph, 4, np.zeros(12, int), Keys(np.arange(4), np.zeros(4, int), 12))
