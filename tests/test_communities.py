import numpy as np
import pytest

from lcde.clustering.communities import communities
from lcde.clustering.components import connected_labels


@pytest.fixture
def two_crowds():
    """Two cliques of 6 faces, joined by one weak edge, and a face alone."""
    ends = np.array([(i, j) for i in range(12) for j in range(i + 1, 12) if i // 6 == j // 6] + [(0, 6)])
    return ends, np.append(np.ones(len(ends) - 1), 0.3)


def test_a_weak_edge_does_not_join_two_crowds(two_crowds):
    labels = communities(*two_crowds, 13, num_trials=1, seed=0)
    assert labels.dtype == np.int64
    assert sorted(np.bincount(labels)) == [1, 6, 6]
    assert len(set(labels[:6])) == len(set(labels[6:12])) == 1
    assert connected_labels(two_crowds[0], 13)[0] == connected_labels(two_crowds[0], 13)[6]


def test_edges_of_no_weight_do_not_count(two_crowds):
    edges, weights = two_crowds
    weights[-1] = -1.0
    assert sorted(np.bincount(communities(edges, weights, 13, num_trials=1, seed=0))) == [1, 6, 6]
    assert communities(edges, 0 * weights, 13, num_trials=1, seed=0).tolist() == list(range(13))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_few_links_are_no_matrix(size):
    edges = np.array([(i, j) for i in range(size) for j in range(i + 1, size)])
    assert communities(edges, np.full(len(edges), 0.5), size, num_trials=1, seed=0).tolist() == [0] * size


@pytest.mark.parametrize("seed", range(5))
def test_an_edge_that_both_ends_name_counts_once(seed):
    rng = np.random.default_rng(seed)
    edges = np.stack([np.arange(1, 200), rng.integers(0, np.arange(1, 200))], axis=1)
    edges = np.unique(np.sort(np.concatenate([edges, rng.choice(200, size=(150, 2))]), axis=1), axis=0)
    edges = edges[edges[:, 0] < edges[:, 1]]
    weights = rng.uniform(0.4, 1, len(edges))
    again = rng.random(len(edges)) < 0.5
    twice = np.concatenate([edges, edges[again, ::-1]]), np.concatenate([weights, weights[again]])
    once = communities(edges, weights, 200, num_trials=1, seed=0)
    assert once.max() > 3
    assert np.array_equal(communities(*twice, 200, num_trials=1, seed=0), once)


def test_it_repeats_itself(two_crowds):
    first, second = (communities(*two_crowds, 13, num_trials=2, seed=0) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("seed", range(10))
def test_no_community_reaches_across_components(seed):
    rng = np.random.default_rng(seed)
    edges = rng.integers(0, 200, size=(250, 2))
    edges = edges[edges[:, 0] != edges[:, 1]]
    labels = communities(edges, rng.uniform(0.4, 1, len(edges)), 300, num_trials=3, seed=0)
    components = connected_labels(edges, 300)
    assert len(np.unique(np.stack([labels, components]), axis=1).T) == labels.max() + 1
