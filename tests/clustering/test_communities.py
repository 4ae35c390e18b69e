import math
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from lcde.clustering.communities import codelength, communities, communities_of_graph, infomap
from lcde.clustering.components import connected_labels
from lcde.clustering.edges import edges_above
from lcde.data import gallery
from lcde.data.gallery import KNNGraph


@pytest.fixture(params=["networkit", "infomap"])
def detect(request):
    if request.param == "infomap":
        pytest.importorskip("infomap")
        return partial(communities, search=infomap)
    return communities


@pytest.fixture
def two_groups():
    """Two cliques of 6 faces, joined by one weak edge, and a single face."""
    ends = np.array([(i, j) for i in range(12) for j in range(i + 1, 12) if i // 6 == j // 6] + [(0, 6)])
    return ends, np.append(np.ones(len(ends) - 1), 0.3)


def random_graph(seed, num_faces, num_edges):
    rng = np.random.default_rng(seed)
    edges = rng.integers(0, num_faces, size=(num_edges, 2))
    edges = np.unique(np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1), axis=0)
    return edges, rng.uniform(0.4, 1, len(edges))


def test_a_weak_edge_does_not_join_two_groups(detect, two_groups):
    labels = detect(*two_groups, 13, num_trials=1, seed=0)
    assert labels.dtype == np.int64
    assert sorted(np.bincount(labels)) == [1, 6, 6]
    assert len(set(labels[:6])) == len(set(labels[6:12])) == 1
    assert connected_labels(two_groups[0], 13)[0] == connected_labels(two_groups[0], 13)[6]


def test_edges_of_no_weight_do_not_count(detect, two_groups):
    edges, weights = two_groups
    weights[-1] = -1.0
    assert sorted(np.bincount(detect(edges, weights, 13, num_trials=1, seed=0))) == [1, 6, 6]
    assert detect(edges, 0 * weights, 13, num_trials=1, seed=0).tolist() == list(range(13))
    assert detect(edges[:0], weights[:0], 13, num_trials=1, seed=0).tolist() == list(range(13))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_very_few_edges_are_one_community(detect, size):
    edges = np.array([(i, j) for i in range(size) for j in range(i + 1, size)])
    assert detect(edges, np.full(len(edges), 0.5), size, num_trials=1, seed=0).tolist() == [0] * size


@pytest.mark.parametrize("seed", range(3))
def test_an_edge_that_comes_twice_counts_once(detect, seed):
    edges, weights = random_graph(seed, 200, 350)
    again = np.random.default_rng(seed).random(len(edges)) < 0.5
    twice = np.concatenate([edges, edges[again, ::-1]]), np.concatenate([weights, weights[again]])
    once = detect(edges, weights, 200, num_trials=1, seed=0)
    assert once.max() > 3
    assert np.array_equal(detect(*twice, 200, num_trials=1, seed=0), once)


def test_one_seed_gives_one_result(detect):
    graph = random_graph(0, 200, 500)
    first, second = (detect(*graph, 200, num_trials=2, seed=3) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("seed", range(4))
def test_no_community_reaches_across_components(detect, seed):
    edges, weights = random_graph(seed, 200, 150)
    labels = detect(edges, weights, 300, num_trials=3, seed=0)
    components = connected_labels(edges, 300)
    assert len(np.unique(np.stack([labels, components]), axis=1).T) == labels.max() + 1


def test_the_best_of_several_runs_counts():
    edges, weights = random_graph(1, 300, 900)
    adjacency = csr_matrix((weights, edges.T), shape=(300, 300))
    single = [codelength(adjacency, communities(edges, weights, 300, 1, seed)) for seed in range(5)]
    assert codelength(adjacency, communities(edges, weights, 300, 5, 0)) == min(single) < max(single)


def test_the_number_of_threads_is_restored():
    nk = pytest.importorskip("networkit")
    before = nk.getMaxNumberOfThreads()
    try:
        nk.setNumberOfThreads(2)
        communities(*random_graph(0, 30, 60), 30, num_trials=1, seed=0)
        assert nk.getMaxNumberOfThreads() == 2
    finally:
        nk.setNumberOfThreads(before)


def test_codelength_of_two_triangles():
    edges = np.array([[0, 1], [1, 2], [0, 2], [3, 4], [4, 5], [3, 5], [2, 3]])
    adjacency = csr_matrix((np.full(7, 0.3), edges.T), shape=(6, 6))
    for modules, bits in (([0, 0, 0, 1, 1, 1], 2.3207), ([0] * 6, 2.5567)):
        assert codelength(adjacency, np.array(modules)) == pytest.approx(bits, abs=5e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_codelength_is_that_of_its_two_codebooks(seed, num_modules):
    """Entropy of the index codebook and of every module's, each weighted by how often it is used."""
    edges, weights = random_graph(seed, 12, 20)
    modules = np.random.default_rng(seed).integers(0, num_modules, 12)
    total = 2 * sum(weights)
    visits, exits = [0.0] * 12, [0.0] * num_modules
    for (first, second), weight in zip(edges.tolist(), weights, strict=True):
        for face, other in ((first, second), (second, first)):
            visits[face] += weight / total
            if modules[face] != modules[other]:
                exits[modules[face]] += weight / total

    def bits(rates):
        return -sum(rate * math.log2(rate / sum(rates)) for rate in rates if rate > 0)

    expected = bits(exits)
    for module in range(num_modules):
        expected += bits([exits[module], *(visits[face] for face in np.flatnonzero(modules == module))])
    adjacency = csr_matrix((weights, edges.T), shape=(12, 12))
    with patch.object(gallery, "ROWS", 5):
        assert codelength(adjacency, modules) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_communities_of_a_graph_are_those_of_its_edges(seed, make_graph):
    graph, _ = make_graph(seed, 120, 7)
    edges, weights = edges_above(graph, 0.25)
    heaviest = {}
    for pair, weight in zip(np.sort(edges, axis=1).tolist(), weights.tolist(), strict=True):
        heaviest[tuple(pair)] = max(weight, heaviest.get(tuple(pair), 0))
    expected = communities(np.array(list(heaviest)), np.array(list(heaviest.values())), 120, 2, seed)
    found = communities_of_graph(graph, graph.similarities >= 0.25, 2, seed)
    assert found.dtype == np.int64
    assert 3 < found.max() < 119
    assert np.array_equal(found, expected)


def test_factors_multiply_the_weights_of_a_graph(make_graph):
    graph, factors = make_graph(0, 120, 7)
    counted = (graph.similarities >= 0.1) & (factors > 0.2)
    product = KNNGraph(graph.indices, graph.similarities * factors)
    found = communities_of_graph(graph, counted, 1, 0, factors)
    assert np.array_equal(found, communities_of_graph(product, counted, 1, 0))
    assert not np.array_equal(found, communities_of_graph(graph, counted, 1, 0))


def test_a_graph_without_edges_leaves_all_faces_alone(make_graph):
    graph, _ = make_graph(0, 30, 5)
    itself = graph.indices == np.arange(30)[:, None]
    assert np.array_equal(communities_of_graph(graph, itself, 1, 0), np.arange(30))


def test_older_versions_of_networkit_give_the_same(make_graph, monkeypatch):
    nk = pytest.importorskip("networkit")
    graph, _ = make_graph(1, 120, 7)
    counted = graph.similarities >= 0.25
    expected = communities_of_graph(graph, counted, 2, 0)
    monkeypatch.delattr(nk, "GraphFromCsr", raising=False)
    assert np.array_equal(communities_of_graph(graph, counted, 2, 0), expected)
