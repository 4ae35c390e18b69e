import numpy as np
import pytest

from lcde.clustering.density import symmetrise
from lcde.clustering.pipeline import LCDEClustering
from lcde.data.formats import normalise
from lcde.data.knn import build_knn

# Worked by hand: symmetrised, all edges have connectivity 1, but 0→2 and 4→2 ½. Densities 1.15, 1.7, 1.2, 1.1, 0.85.
INDICES = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 3], [3, 4, 2], [4, 3, 2]], dtype=np.int32)
SIMILARITIES = np.array([[1, 0.9, 0.5], [1, 0.9, 0.8], [1, 0.8, 0.4], [1, 0.7, 0.4], [1, 0.7, 0.3]], dtype=np.float32)
EDGES_DENSITY = [[0, 1], [2, 1], [3, 2], [4, 3]]
FEATURES = np.eye(5, dtype=np.float32)
PROBABILITY = {(0, 1): 0.875, (2, 1): 0.75, (3, 2): 0.25, (4, 3): 0.8125}


class FixedNetworks:
    """Networks that have made up their mind; pairs they have no opinion on stay apart."""

    def __init__(self, directed):
        self.directed = directed

    def connectivity(self):
        return self.directed

    def edge_probability(self, edges):
        return np.array([PROBABILITY.get(tuple(edge), 0) for edge in edges.tolist()], dtype=np.float32)


def cluster(**settings):
    networks = FixedNetworks(np.ones(INDICES.shape, dtype=np.float32))
    return LCDEClustering(**settings)(FEATURES, INDICES, SIMILARITIES, networks)


def test_stages_give_what_the_hand_gives():
    result = cluster()
    np.testing.assert_allclose(result.density, [1.15, 1.7, 1.2, 1.1, 0.85], rtol=1e-6)
    assert result.edges_density.tolist() == EDGES_DENSITY
    assert result.edge_probability.tolist() == list(PROBABILITY.values())
    assert result.similarity_threshold == pytest.approx(0.64)
    assert result.edges_similar.shape == (0, 2)
    assert result.labels.tolist() == [0, 0, 0, 1, 1]
    assert set(result.seconds) == {"connectivity", "edges", "pairs", "components"}


@pytest.mark.parametrize(
    ("threshold", "labels"),
    [(0.1, [0, 0, 0, 0, 0]), (0.75, [0, 0, 1, 2, 2]), (0.8, [0, 0, 1, 2, 2]), (0.9, [0, 1, 2, 3, 4])],
)
def test_density_edges_join_above_edge_threshold(threshold, labels):
    assert cluster(edge_threshold=threshold).labels.tolist() == labels


def test_density_edges_as_strong_as_similar_ones_join_unasked_if_wanted():
    settings = {"similarity_threshold": 0.75, "edge_threshold": 0.9}  # PCENet would drop all
    assert cluster(**settings).labels.tolist() == [0, 1, 2, 3, 4]
    result = cluster(**settings, ask_strong=False)
    assert result.labels.tolist() == [0, 0, 0, 1, 2]
    assert np.isnan(result.edge_probability).tolist() == [True, True, False, False]
    assert result.kept.tolist() == [True, True, False, False]
    exactly = cluster(similarity_threshold=float(SIMILARITIES[2, 1]), edge_threshold=0.9, ask_strong=False)
    assert exactly.labels.tolist() == [0, 0, 0, 1, 2]


def test_crowds_part_by_the_mean_of_several_edges_if_wanted():
    rng = np.random.default_rng(0)
    people = np.eye(2, 16)[np.repeat([0, 1], 8)]  # two groups, all neighbours of each other
    features = normalise((people + 0.15 * rng.standard_normal((16, 16))).astype(np.float32), "faces")
    graph = build_knn(features, 16)
    strangers = people[graph[0]].argmax(axis=-1) != people.argmax(axis=-1)[:, None]
    networks = FixedNetworks(np.where(strangers, 0.3, 1).astype(np.float32))
    alone = LCDEClustering(0.6)(features, *graph, networks)
    assert len(np.unique(alone.labels)) == 2
    bridge = alone.edges_density[alone.labels[alone.edges_density[:, 0]] != alone.labels[alone.edges_density[:, 1]]]
    assert len(bridge) == 1
    networks.edge_probability = lambda edges: (edges == bridge).all(axis=1).astype(np.float32)
    assert len(np.unique(LCDEClustering(0.6)(features, *graph, networks).labels)) == 1
    parted = LCDEClustering(0.6, second_opinions=4)(features, *graph, networks)
    assert np.array_equal(parted.labels, alone.labels)
    assert parted.edges_density[~parted.kept].tolist() == parted.edges_parted.tolist() == bridge.tolist()
    assert not len(alone.edges_parted)


@pytest.mark.parametrize(("threshold", "edges"), [(0.3, []), (0.25, [[0, 2]]), (0.1, [[0, 2], [2, 4]])])
def test_similar_edges_join_from_similarity_threshold(threshold, edges):
    result = cluster(similarity_threshold=threshold, edge_threshold=1.0)
    assert result.edges_similar.tolist() == edges
    ends = {face for edge in edges for face in edge}
    assert [label == result.labels[0] for label in result.labels] == [face == 0 or face in ends for face in range(5)]


def test_noise_is_what_is_not_dense_or_in_a_small_cluster_and_changes_no_cluster():
    plain = cluster()
    assert plain.labels.tolist() == [0, 0, 0, 1, 1]
    assert not plain.noise.any()
    sparse = cluster(density_threshold=plain.density[2])  # faces 1 and 2 reach it
    assert sparse.noise.tolist() == [True, False, False, True, True]
    small = cluster(min_cluster_size=3)
    assert small.noise.tolist() == [False, False, False, True, True]
    for result in (sparse, small):
        assert np.array_equal(result.labels, plain.labels)


def test_inputs_are_left_unchanged():
    arrays = INDICES.copy(), SIMILARITIES.copy(), np.linspace(0, 1, 15, dtype=np.float32).reshape(5, 3)
    for array in arrays:
        array.flags.writeable = False  # writing would raise
    indices, similarities, directed = arrays
    result = LCDEClustering(density_threshold=0.0)(FEATURES, indices, similarities, FixedNetworks(directed))
    assert np.array_equal(result.connectivity, symmetrise(directed, indices))


def test_clusters_with_like_centroids_merge_if_asked():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 6)
    people = rng.standard_normal((100, 128))
    features = normalise((people[labels] + 0.8 * rng.standard_normal((600, 128))).astype(np.float32), "faces")
    graph = build_knn(features, 8)
    networks = FixedNetworks(np.ones((600, 8), dtype=np.float32))  # and no opinion on any pair
    alone = LCDEClustering(1.1, edge_threshold=1.0)(features, *graph, networks)
    assert len(np.unique(alone.labels)) == 600
    assert alone.centroid_rule is None
    merged = LCDEClustering(1.1, edge_threshold=1.0, strangers_per_centroid=0.005)(features, *graph, networks)
    assert np.array_equal(merged.labels, labels)
    assert 0.2 < merged.centroid_rule.threshold < 0.5
