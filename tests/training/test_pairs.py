import numpy as np
import pytest

from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import select_edges
from lcde.data.gallery import KNNGraph
from lcde.training.pairs import MixedPairs, UniformPairs

NONE = {"density": 0.0, "uncertain": 0.0, "near": 0.0, "near_neighbours": 2}
SAMPLERS = {
    "uniform": UniformPairs(1.5),
    "mixed": MixedPairs(density=0.5, uncertain=0.25, near=0.75, near_neighbours=2),
    "fractions": MixedPairs(density=0.11, uncertain=0.11, near=0.11, near_neighbours=2),
}
COUNTS = {"uniform": 60, "mixed": 20 + 10 + 30, "fractions": 3 * 4}


@pytest.fixture(params=[0, 12], ids=["distinct", "duplicates"])
def graph(request, make_gallery):
    """kNN graph and connectivity (some of it 0 or 1) of 40 faces."""
    graph = make_gallery(0, duplicates=request.param).graph
    directed = np.random.default_rng(0).random(graph.indices.shape, dtype=np.float32)
    connectivity = symmetrise(directed, graph.indices)
    connectivity[5], connectivity[6] = 0, 1
    return graph, connectivity


def draw(sampler, graph, seed=0):
    return sampler(*graph, np.random.default_rng(seed))


def edges_of(graph, columns=slice(1, None)):
    """kNN edges of the given columns, in both directions."""
    edges = {(face, other) for face, row in enumerate(graph[0].indices) for other in row[columns].tolist()}
    return edges | {(other, face) for face, other in edges}


def as_set(pairs):
    return set(map(tuple, pairs.tolist()))


@pytest.mark.parametrize("name", SAMPLERS)
def test_pairs_are_knn_edges_in_the_number_asked_for(graph, name):
    pairs = draw(SAMPLERS[name], graph)
    assert pairs.dtype == np.int64
    assert pairs.shape == (COUNTS[name], 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert as_set(pairs) <= edges_of(graph)


@pytest.mark.parametrize("name", SAMPLERS)
def test_seed_decides_the_pairs(graph, name):
    pairs = draw(SAMPLERS[name], graph)
    assert np.array_equal(draw(SAMPLERS[name], graph), pairs)
    assert not np.array_equal(draw(SAMPLERS[name], graph, seed=1), pairs)


@pytest.mark.parametrize("name", SAMPLERS)
def test_graph_is_left_unchanged(graph, name):
    arrays = graph[0].indices, graph[0].similarities, graph[1]
    copies = [array.copy() for array in arrays]
    draw(SAMPLERS[name], graph)
    assert all(map(np.array_equal, arrays, copies))


def test_uniform_pairs_favour_no_edge(graph):
    pairs = draw(UniformPairs(500.0), graph)  # 100 draws of each of 200 edges
    counts = np.unique(pairs, axis=0, return_counts=True)[1]
    assert len(counts) == 200
    assert 60 < counts.min() < counts.max() < 140


def test_density_share_holds_density_edges(graph):
    neighbours, connectivity = graph
    edges_density, _ = select_edges(neighbours, connectivity, density(connectivity, neighbours.similarities), np.inf)
    assert as_set(draw(MixedPairs(**NONE | {"density": 20.0}), graph)) == as_set(edges_density)
    assert as_set(draw(SAMPLERS["mixed"], graph)[:20]) <= as_set(edges_density)


def test_mixed_pairs_lead_to_the_denser_end(graph):
    densities = density(graph[1], graph[0].similarities)
    first, second = draw(SAMPLERS["mixed"], graph).T
    assert (densities[first] <= densities[second]).all()
    assert (densities[first] < densities[second]).any()


def test_near_share_holds_the_nearest_neighbours(graph):
    pairs = draw(MixedPairs(**NONE | {"near": 20.0}), graph)
    assert as_set(pairs) <= edges_of(graph, slice(1, 3))
    assert set(pairs.ravel()) == set(range(40))


def test_uncertain_share_leaves_sure_edges_out():
    indices = np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1]], dtype=np.int32)
    connectivity = np.array([[0.5, 0, 1], [0.5, 0.5, 0], [0.5, 1, 0.1]], dtype=np.float32)
    pairs = draw(
        MixedPairs(**NONE | {"uncertain": 100.0}), (KNNGraph(indices, np.ones_like(connectivity)), connectivity)
    )
    edges, counts = np.unique(np.sort(pairs, axis=1), axis=0, return_counts=True)
    assert edges.tolist() == [[1, 2]]
    assert counts.tolist() == [300]


@pytest.mark.parametrize("value", [0, 1])
def test_connectivity_without_any_doubt_still_gives_all_pairs(value, make_gallery):
    graph = make_gallery(0).graph
    sampler = MixedPairs(density=1, uncertain=1, near=1, near_neighbours=3)
    connectivity = np.full_like(graph.similarities, value)
    pairs = sampler(graph, connectivity, np.random.default_rng(0))
    assert pairs.shape == (3 * len(graph), 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
