"""Hi-LANDER: densities worked out elsewhere, levels by true linkage, and the network beside sums over single edges."""

import pickle

import numpy as np
import pytest
import torch

from lcde.configuration import build, compose_config
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery, KNNGraph
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.estimator import LCDE
from lcde.methods.classical import choose_threshold
from lcde.methods.method import Scores
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.models.base import DeviceGraph, Neighbourhoods
from lcde.peers import hilander
from lcde.peers.hilander import HilanderRule, LinkageNet, density, first_level, next_level, training_graphs, tree_edges


class TrueLinkage(Scores):
    """1 where the peaks of nodes are of one identity, 0 elsewhere."""

    def __init__(self, gallery):
        self.gallery, self.asked = gallery, []

    def linkage(self, features, graph):
        peaks = (features[:, : features.shape[1] // 2] @ self.gallery.features.T).argmax(axis=1)
        self.asked.append(peaks)
        labels = self.gallery.labels_true[peaks]
        return (labels[graph.indices] == labels[:, None]).astype(np.float32)


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), rng.integers(5, 60, 40))
    X = rng.standard_normal((40, 64))[labels] + 0.5 * rng.standard_normal((len(labels), 64))
    features = normalise(X.astype(np.float32), "faces")
    return Gallery("blobs", features, build_knn(features, 16), labels)


def same_clusters(found, expected):
    return np.array_equal(found[:, None] == found, expected[:, None] == expected)


def test_density_is_the_published_one(circle):
    same = circle.labels_true[circle.graph.indices] == circle.labels_true[:, None]
    expected = [0.5407, 0.5365, 0.5235, 0.4977, 0.0418, 0.0574, 0.0456, -0.4083, -0.3891, -0.6752]
    assert density(circle.graph.similarities, same.astype(np.float32)) == pytest.approx(expected, abs=1e-4)


def test_nodes_join_their_most_probable_denser_neighbour():
    indices = np.array([[0, 1, 2], [1, 0, 2], [2, 3, 0], [3, 2, 1]], dtype=np.int32)
    probability = np.array([[1, 0.9, 0.8], [1, 0.9, 0.5], [1, 0.9, 0.6], [1, 0.95, 0.7]], dtype=np.float32)
    graph, dense = KNNGraph(indices, np.ones_like(probability)), np.array([0.1, 0.2, 0.3, 0.3])
    assert tree_edges(graph, probability, dense, 0.4).tolist() == [[0, 1], [1, 2]]
    assert tree_edges(graph, probability, dense, 0.5).tolist() == [[0, 1]]


def test_a_level_has_the_peaks_and_the_means_of_trees(circle):
    edges = np.array([[3, 2], [2, 0], [5, 4], [6, 4], [7, 8]])
    level = next_level(first_level(circle.features, circle.graph, 3), edges, circle.features)
    assert sorted(level.peaks.tolist()) == [0, 1, 4, 8, 9]
    assert np.array_equal(level.peaks[level.nodes], [0, 1, 0, 0, 4, 4, 4, 8, 8, 9])
    assert level.graph.k == 3
    for node, peak in enumerate(level.peaks):
        mean = circle.features[level.nodes == node].mean(axis=0)
        assert level.features[node] == pytest.approx(np.concatenate([circle.features[peak], mean]), abs=1e-6)
    again = next_level(level, np.array([[node, 0] for node in range(1, 5)]), circle.features)
    assert again.nodes.tolist() == [0] * 10
    assert again.features[0, 2:] == pytest.approx(circle.features.mean(axis=0), abs=1e-6)


def test_true_linkage_gives_the_identities_in_two_levels(blobs, monkeypatch):
    scores = TrueLinkage(blobs)
    labels = HilanderRule(0.8)(blobs, scores).labels
    assert same_clusters(labels, blobs.labels_true)
    sizes = [len(peaks) for peaks in scores.asked]
    assert sizes[0] == len(blobs) > sizes[1] > sizes[-1] == 40
    monkeypatch.setattr(hilander, "LEVELS", 2)
    table = Contingency.of(blobs.labels_true, HilanderRule(0.8)(blobs, TrueLinkage(blobs)).labels)
    assert min(pairwise(table).f_score, bcubed(table).f_score) > 0.99


def test_linkage_is_that_of_single_edges(blobs, tmp_path):
    torch.manual_seed(0)
    model = build(compose_config("train", ["model=hilander"]).model, feature_dim=64, k=16, width=16)
    level = first_level(blobs.features, blobs.graph, 5)
    level = next_level(level, np.stack([np.arange(1, 300), np.arange(299)], axis=1), blobs.features)
    found = model.bind(blobs, "float32", False, None).linkage(level.features, level.graph)
    net, features = model.network, torch.from_numpy(level.features)

    def ends(node):
        weights = torch.from_numpy(level.graph.similarities[node, 1:]).clamp(min=0)
        mean = (weights @ features[level.graph.indices[node, 1:]]) / weights.sum()
        return net.source_and_target(torch.relu(net.aggregation(torch.cat([features[node], mean]))))

    for node, place in ((0, 1), (0, 4), (7, 2), (len(found) - 1, 3)):
        source, target = ends(level.graph.indices[node, place])[:8], ends(node)[8:]
        expected = torch.softmax(net.classifier((source + target)[None]), dim=1)[0, 1].item()
        assert found[node, place] == pytest.approx(expected, abs=1e-5)
    assert (found[:, 0] == 1).all()
    kept = model.bind(blobs, "float32", False, tmp_path).linkage(level.features, level.graph)
    assert np.array_equal(kept, found)


def test_levels_to_train_on_are_merged_by_true_density(blobs):
    tensors = map(torch.from_numpy, (blobs.features, blobs.graph.indices, blobs.labels_true))
    graphs = training_graphs(DeviceGraph(*tensors), [[10, 2], [5, 3]])
    assert [graph.nodes.indices.shape[1] for graph in graphs] == [10, 10, 5, 5, 5]
    sizes = [len(graph.density) for graph in graphs]
    assert sizes[0] == sizes[2] == len(blobs) and sizes[2] > sizes[3] > sizes[4]
    peaks = graphs[1].nodes.features[:, :64].numpy()
    identity = blobs.labels_true[(peaks @ blobs.features.T).argmax(axis=1)]
    assert np.array_equal(graphs[1].nodes.labels_true, identity)
    assert graphs[1].node_of.max() == sizes[1] - 1


def test_losses_are_those_of_the_linkage(blobs):
    torch.manual_seed(0)
    settings = {"feature_dim": 64, "k": 16, "width": 16, "hierarchies": [[10, 1]]}
    model = build(compose_config("train", ["model=hilander"]).model, **settings)
    level = first_level(blobs.features, blobs.graph, 10)
    probability = model.bind(blobs, "float32", False, None).linkage(level.features, level.graph)
    indices, similarities = level.graph.indices, level.graph.similarities
    same = blobs.labels_true[indices] == blobs.labels_true[:, None]
    known = density(similarities, same.astype(np.float32))
    denser, loss = known[indices] > known[:, None], -np.log(np.where(same, probability, 1 - probability) + 1e-9)
    tensors = map(torch.from_numpy, (blobs.features, blobs.graph.indices, blobs.labels_true))
    pairs = torch.arange(len(blobs) // 2 * 2).view(-1, 2)
    found = model.losses(Neighbourhoods(None, None, None, pairs, DeviceGraph(*tensors)), training=True)
    rows = slice(pairs.max() + 1)
    expected = ((density(similarities, probability) - known)[rows] ** 2).mean()
    assert found["density_loss"].item() == pytest.approx(expected, rel=1e-4)
    expected = [loss[rows][(denser & of_class)[rows]].mean() for of_class in (same, ~same)]
    assert found["linkage_loss"].item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_rotation_is_that_of_the_features(blobs):
    model = build(compose_config("train", ["model=hilander"]).model, feature_dim=64, k=16, width=16)
    tensors = map(torch.from_numpy, (blobs.features, blobs.graph.indices, blobs.labels_true))
    graph, rotation = DeviceGraph(*tensors), torch.linalg.qr(torch.randn(64, 64))[0]
    turned = graph._replace(features=graph.features @ rotation)
    for batch_idx in (0, 1):
        model.batch_idx = batch_idx
        found, expected, plain = (
            model.losses(Neighbourhoods(None, None, None, torch.arange(100).view(50, 2), of), training=True)
            for of in (graph._replace(rotation=rotation), turned, graph)
        )
        for name, loss in found.items():
            assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4)
            assert loss.item() != pytest.approx(plain[name].item(), rel=1e-4)


@pytest.mark.slow
def test_a_fitted_model_holds_no_faces(blobs):
    estimator = LCDE(k=10, model="hilander", max_epochs=1, overrides=["model.width=16"])
    estimator.fit(blobs.features, blobs.labels_true)
    assert len(pickle.dumps(estimator.model_)) < blobs.features.nbytes / 2


def test_thresholds_are_chosen_with_all_levels(blobs):
    assert same_clusters(
        HilanderRule(choose_threshold(HilanderRule(), blobs, TrueLinkage(blobs)))(blobs, TrueLinkage(blobs)).labels,
        blobs.labels_true,
    )


def test_a_model_without_linkage_says_so(circle):
    model = build(compose_config("train", ["model=gcn_v"]).model, feature_dim=2, k=5)
    with pytest.raises(InputError, match=r"the model gives no linkage of nodes; choose another clustering"):
        HilanderRule(0.8)(circle, model.bind(circle, "float32", False, None))


def test_a_node_without_neighbours_has_no_density():
    net = LinkageNet(2, 4)
    one = torch.ones(1, 1)
    assert net.linkage(torch.ones(1, 4), one.int() * 0, one).tolist() == [[1]]
    assert density(one, one).tolist() == [0]
