import numpy as np
import pytest
import torch

from lcde.clustering.density import symmetrise
from lcde.clustering.pipeline import LCDEClustering
from lcde.data.formats import read_features, read_labels
from lcde.data.knn import knn_graph
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet
from lcde.models.scoring import GraphScorer

# Worked by hand: symmetrised, all edges have connectivity 1, but 0→2 and 4→2 ½. Densities 1.15, 1.7, 1.2, 1.1, 0.85.
INDICES = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 3], [3, 4, 2], [4, 3, 2]], dtype=np.int32)
SIMILARITIES = np.array([[1, 0.9, 0.5], [1, 0.9, 0.8], [1, 0.8, 0.4], [1, 0.7, 0.4], [1, 0.7, 0.3]], dtype=np.float32)
EDGES_DENSITY = [[0, 1], [2, 1], [3, 2], [4, 3]]
PROBABILITY = {(0, 1): 0.875, (2, 1): 0.75, (3, 2): 0.25, (4, 3): 0.8125}


class FixedNetworks:
    """Networks that have made up their mind."""

    def connectivity(self):
        return np.ones(INDICES.shape, dtype=np.float32)

    def edge_probability(self, edges):
        return np.array([PROBABILITY[tuple(edge)] for edge in edges.tolist()], dtype=np.float32)


def cluster(**settings):
    return LCDEClustering(**settings)(INDICES, SIMILARITIES, FixedNetworks())


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


@pytest.mark.parametrize(("threshold", "edges"), [(0.3, []), (0.25, [[0, 2]]), (0.1, [[0, 2], [2, 4]])])
def test_similar_edges_join_from_similarity_threshold(threshold, edges):
    result = cluster(similarity_threshold=threshold, edge_threshold=1.0)
    assert result.edges_similar.tolist() == edges
    ends = {face for edge in edges for face in edge}
    assert [label == result.labels[0] for label in result.labels] == [face == 0 or face in ends for face in range(5)]


def test_density_threshold_bars_faces_from_edges():
    result = cluster(similarity_threshold=0.1, density_threshold=1.18)  # faces 1 and 2 remain
    assert result.edges_density.tolist() == [[2, 1]]
    assert result.edge_probability.tolist() == [0.75]
    assert result.edges_similar.shape == (0, 2)
    assert result.labels.tolist() == [0, 1, 1, 2, 3]


def test_inputs_are_left_unchanged():
    indices, similarities = INDICES.copy(), SIMILARITIES.copy()
    connectivity = np.linspace(0, 1, indices.size, dtype=np.float32).reshape(indices.shape)
    networks = FixedNetworks()
    networks.connectivity = connectivity.copy
    for array in (indices, similarities, connectivity):
        array.flags.writeable = False
    result = LCDEClustering(density_threshold=0.0, edge_threshold=0.0)(indices, similarities, networks)
    assert np.array_equal(result.connectivity, symmetrise(connectivity, indices))


@pytest.fixture(scope="module")
def reference(shared):
    """The reference part clustered by the project, beside what the published program gives."""
    folder, part = shared / "reference", "part1_test"
    labels_true = read_labels(folder / "ms1m" / "labels" / f"{part}.meta")
    features = read_features(folder / "ms1m" / "features" / f"{part}.bin", len(labels_true), 64)
    indices, similarities, _ = knn_graph(features, 16, folder / "ms1m" / "knns" / part, part)
    networks = []
    for network in (LCENet, PCENet):
        networks.append(network(64, 16, num_layers=3, nhead=8, dim_feedforward=128, dropout=0.1))
        networks[-1].load_state_dict(torch.load(folder / f"{network.__name__}.pth", weights_only=True))
    scorer = GraphScorer(*networks, features, indices)
    directed = scorer.connectivity()
    result = LCDEClustering()(indices, similarities, scorer)
    return result, directed, labels_true, np.load(folder / "ms1m" / "expected.npz")


@pytest.mark.parametrize("name", ["connectivity", "density", "edge_probability"])
def test_reference_scores_are_reproduced(reference, name):
    result, directed, _, expected = reference
    actual = directed if name == "connectivity" else getattr(result, name)
    np.testing.assert_allclose(actual, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["edges_density", "edges_similar", "labels"])
def test_reference_clusters_are_reproduced(reference, name):
    result, _, _, expected = reference
    assert np.array_equal(getattr(result, name), expected[name])


@pytest.mark.parametrize("metric", [pairwise, bcubed])
def test_reference_metrics_are_reproduced(reference, metric):
    result, _, labels_true, expected = reference
    score = metric(Contingency.of(labels_true, result.labels))
    actual = [score.precision, score.recall, score.f_score]
    np.testing.assert_allclose(actual, expected[metric.__name__], rtol=0, atol=1e-9)


