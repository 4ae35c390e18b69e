"""Trained methods of the literature: values computed apart on ten points of a circle, oracles, and real training."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

from lcde.clustering.edges import peak_links
from lcde.clustering.shared_neighbours import sums_over_shared
from lcde.configuration import build, compose_config
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery, KNNGraph
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.methods.classical import ComponentsRule, choose_threshold
from lcde.methods.fces import FCESRule, edge_probability, pairs_of
from lcde.methods.method import Scores
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.peers.chen import ChenRule, diffusion_density, transition_distance
from lcde.peers.fceser import FCESERRule, PairsBeyondStop, beyond_stop
from lcde.peers.gcn_v import GCNVRule, confidence
from lcde.peers.star_fc import StarFCRule, intimacy

needs_infomap = pytest.mark.skipif(importlib.util.find_spec("infomap") is None, reason="the package infomap is missing")
PEERS = ["chen", "star_fc", "gcn_v"]
SMALL = {  # layers for D = 32 and K = 16
    "chen": {"nhead": 4, "dim_feedforward": 24},
    "star_fc": {"width": 24},
    "gcn_v": {"width": 24},
    "lgcn": {"width": 24},
    "gcn_ve": {"width": 24},
    "ada_nets": {"width": 24},
    "hilander": {"width": 24},
    "pairwise": {"width": 24},
    "clusformer": {"num_encoder_layers": 1, "num_decoder_layers": 1, "nhead": 4, "dim_feedforward": 96},
    "fceser": {"num_layers": 1, "nhead": 4, "dim_feedforward": 24},
}


class Known(Scores):
    """Given scores."""

    def __init__(self, connectivity=None, embedding=None):
        self._connectivity, self._embedding = connectivity, embedding

    def connectivity(self, first_row=0):
        return self._connectivity[first_row:]

    def embedding(self):
        return self._embedding


def same_clusters(found, expected):
    return np.array_equal(found[:, None] == found, expected[:, None] == expected)


def test_sums_over_shared_neighbours_are_those_of_dense_matrices(make_graph):
    graph, weights = make_graph(0, 40, 6)
    dense = np.zeros((2, 40, 40))
    for matrix, values in zip(dense, (graph.similarities, weights), strict=True):
        np.put_along_axis(matrix, graph.indices, values, axis=1)
    expected = np.take_along_axis(dense[0] @ dense[1].T, graph.indices, axis=1)
    assert sums_over_shared(graph.similarities, weights, graph.indices) == pytest.approx(expected)


def test_diffusion_density_is_the_published_one(circle):
    density = diffusion_density(1 - circle.graph.similarities, circle.graph.indices, nearest=3)
    expected = [0.6711, 1.3273, 1.3297, 0.6719, 0.9964, 1.0084, 1.2995, 0.9786, 1.0266, 0.6904]
    assert density == pytest.approx(expected, abs=1e-4)


def test_transition_distance_is_the_published_one(circle):
    distance = transition_distance(1 - circle.graph.similarities, circle.graph.indices)
    assert circle.graph.indices[7].tolist() == [7, 8, 6, 5, 9]
    assert distance[7, 1:] == pytest.approx([0.0367, 0.4032, 0.5918, 0.5823], abs=1e-4)


def test_chen_joins_each_face_to_the_nearest_denser_one(circle):
    connectivity = circle.graph.similarities
    graph = ChenRule().weigh(circle, Known(connectivity))
    density = diffusion_density(1 - connectivity, circle.graph.indices)
    nearness = 1 - transition_distance(1 - connectivity, circle.graph.indices)
    for face, row in enumerate(circle.graph.indices):
        allowed = [place for place, other in enumerate(row) if other != face and density[other] >= density[face]]
        best = max(allowed, key=lambda place: nearness[face, place], default=None)
        assert graph.indices[face].tolist() == [face, face if best is None else row[best]]
        assert graph.similarities[face, 1] == pytest.approx(0 if best is None else nearness[face, best])
    joined = graph.similarities.max(axis=1) >= 0.3
    assert len(np.unique(ChenRule(0.3)(circle, Known(connectivity)).labels)) >= 10 - joined.sum()


def test_confidence_is_the_published_one_but_for_its_scale(circle):
    graph = circle.graph
    same = circle.labels_true[graph.indices] == circle.labels_true[:, None]
    found = confidence(torch.from_numpy(circle.features[graph.indices]), torch.from_numpy(same).long()).numpy()
    expected = [1, 0.9947, 0.9783, 0.9456, 0.3690, 0.3887, 0.3739, -0.2002, -0.1759, -0.5378]
    assert found / np.abs(found).max() == pytest.approx(expected, abs=1e-4)
    links = peak_links(graph, found)
    assert links.indices[:, 1].tolist() == [0, 0, 1, 2, 5, 3, 5, 8, 6, 8]  # 0, the most confident, has no link
    assert links.similarities[0, 1] == 0
    assert links.similarities[8, 1] == pytest.approx(circle.features[8] @ circle.features[6])


def test_gcn_v_cuts_links_below_the_threshold(circle):
    known = Known(embedding=np.array([1, 0.99, 0.97, 0.94, 0.36, 0.38, 0.37, -0.2, -0.17, -0.5])[:, None])
    labels = GCNVRule(np.cos(np.deg2rad(10)))(circle, known).labels
    assert same_clusters(labels, np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3]))


def test_intimacy_is_the_published_one(circle):
    rows, columns = np.nonzero(circle.graph.similarities[:, 1:] > 0.9)
    edges = np.stack([rows, circle.graph.indices[rows, columns + 1]], axis=1).astype(np.int64)
    found = dict(zip(map(tuple, edges.tolist()), intimacy(edges, 10, count_ends=False).tolist(), strict=True))
    assert found[0, 1] == pytest.approx(2 / 3)
    assert found[4, 5] == 0.5
    assert found[7, 8] == 0
    assert max(found.values()) < 0.72


@pytest.mark.parametrize(
    ("size", "count_ends", "expected"), [(5, False, 0.75), (4, False, 2 / 3), (4, True, 1), (2, True, 1)]
)
def test_intimacy_of_faces_that_are_all_connected(size, count_ends, expected):
    edges = np.array([(i, j) for i in range(size) for j in range(size) if i != j])
    assert intimacy(edges, size, count_ends) == pytest.approx(np.full(len(edges), expected))


def test_intimacy_is_that_of_dense_matrices(make_graph):
    graph, _ = make_graph(1, 60, 7)
    rows, columns = np.nonzero(graph.similarities[:, 1:] >= 0.25)
    edges = np.stack([rows, graph.indices[rows, columns + 1]], axis=1).astype(np.int64)
    dense = np.eye(60)
    dense[tuple(edges.T)] = 1
    degree = dense.sum(axis=1)
    expected = (dense @ dense)[tuple(edges.T)] / degree[edges].min(axis=1)
    assert intimacy(edges, 60, count_ends=True) == pytest.approx(expected)


def test_star_fc_keeps_probable_and_intimate_edges(circle):
    probability = (circle.labels_true[circle.graph.indices] == circle.labels_true[:, None]).astype(np.float32)
    assert same_clusters(StarFCRule(0.7)(circle, Known(probability)).labels, circle.labels_true)
    assert len(np.unique(StarFCRule(0.7, count_ends=False)(circle, Known(probability)).labels)) == 10
    assert len(np.unique(StarFCRule(threshold=1.0)(circle, Known(0.9 * probability)).labels)) == 10


@pytest.mark.parametrize("peer", PEERS)
def test_perfect_scores_give_the_identities(peer):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(15), 8)
    X = rng.standard_normal((15, 32))[labels] + 0.2 * rng.standard_normal((120, 32))
    features = normalise(X.astype(np.float32), "a test")
    graph = build_knn(features, 16)
    same = (labels[graph.indices] == labels[:, None]).astype(np.float32)
    expected = confidence(torch.from_numpy(features[graph.indices]), torch.from_numpy(same))
    rule = build(compose_config("train", [f"model={peer}"]).clustering)
    probability = (0.9 * same + 0.1 * rng.random(same.shape)).astype(np.float32)  # equal densities would be all peaks
    found = rule(Gallery("blobs", features, graph), Known(probability, expected.numpy()[:, None])).labels
    assert same_clusters(found, labels)


def test_a_model_without_connectivity_or_values_of_faces_says_so(circle):
    for peer, other in (("gcn_v", "star_fc"), ("chen", "gcn_v")):
        model = build(
            compose_config("train", [f"model={peer}"]).model,
            feature_dim=2,
            k=5,
            **({"nhead": 1} if peer == "chen" else {}),
        )
        scores = model.bind(circle, "float32", False, None)
        with pytest.raises(InputError, match=r"the model gives no .* choose another clustering"):
            build(compose_config("train", [f"model={other}"]).clustering)(circle, scores)


@needs_infomap
def test_the_model_is_asked_about_what_comes_after_a_stop(circle):
    rule = FCESERRule(0.6, recall=0.35, accept=0.6)
    graph = FCESRule(0.6).weigh(circle, None)
    pairs = pairs_of(graph, beyond_stop(graph, 0.6, 0.35))
    assert pairs[pairs[:, 0] == 5].tolist() == [[5, 3], [5, 7]]  # 7 has 0.6185, but comes after 3, with 0.3885
    assert graph.similarities[5, 1:] == pytest.approx([0.8561, 0.8576, 0.3885, 0.6185], abs=1e-4)
    known, asked = Known(), []
    known.edge_probability = lambda edges: asked.append(edges) or np.zeros(len(edges), dtype=np.float32)
    assert np.array_equal(rule(circle, known).labels, FCESRule(0.6)(circle).labels)
    assert np.array_equal(asked[0], pairs)
    known.edge_probability = lambda edges: np.ones(len(edges), dtype=np.float32)
    assert not same_clusters(rule(circle, known).labels, FCESRule(0.6)(circle).labels)


@needs_infomap
def test_the_threshold_is_chosen_with_what_the_model_says(make_gallery):
    """The model is asked once about all that a candidate needs; each gives the clusters of the rule itself."""
    gallery, asked = make_gallery(3, num_faces=60, k=12), []

    class Answers(Scores):
        def edge_probability(self, edges):
            asked.append(len(edges))
            same = gallery.labels_true[edges[:, 0]] == gallery.labels_true[edges[:, 1]]
            return np.where(same, 0.9, 0.3).astype(np.float32)

    rule, scores = FCESERRule(None, recall=0.05), Answers()
    graph, tried = rule.weigh(gallery, scores), rule.candidates(gallery.graph)[::4]
    assert len(asked) == 1
    for threshold in tried:
        chosen = replace(rule, threshold=threshold)
        assert np.array_equal(chosen.cut(gallery, graph, scores).labels, chosen(gallery, scores).labels)
    assert len(set(asked)) > 2  # a threshold asks about its own pairs alone

    def quality(threshold):
        table = Contingency.of(gallery.labels_true, replace(rule, threshold=threshold)(gallery, scores).labels)
        return pairwise(table).f_score + bcubed(table).f_score

    best = choose_threshold(rule, gallery, scores)
    assert quality(best) == max(map(quality, rule.candidates(gallery.graph).tolist()))


def test_pairs_after_stops_are_drawn(circle):
    weights = KNNGraph(circle.graph.indices, edge_probability(circle.graph))
    expected = set(map(tuple, pairs_of(weights, beyond_stop(weights, 0.6, 0.3)).tolist()))
    pairs = PairsBeyondStop(0.6, 0.3, 20)(circle.graph, circle.graph.similarities, np.random.default_rng(0))
    assert set(map(tuple, pairs.tolist())) == expected
    assert len(pairs) == 200
    with pytest.raises(InputError, match=r"no pair after a stop reaches pairs\.recall=0\.5; lower it"):
        PairsBeyondStop(0.0, 0.5, 1)(circle.graph, circle.graph.similarities, np.random.default_rng(0))


@pytest.mark.parametrize("peer", SMALL)
def test_layer_settings_are_all_that_weights_depend_on(peer):
    config, sizes = compose_config("train", [f"model={peer}"]).model, {"feature_dim": 32, "k": 16}
    model = build(config, **sizes, **SMALL[peer])
    assert model.layer_settings() == SMALL[peer]
    build(config, **sizes, **model.layer_settings()).load_state_dict(model.state_dict())


IN_PIECES = {name: SMALL[name] for name in ("chen", "clusformer", "fceser", "gcn_v", "star_fc")} | {
    "lcde": {"num_layers": 1, "nhead": 8, "dim_feedforward": 16, "neighbours_per_end": 5}
}


@pytest.mark.parametrize("name", IN_PIECES)
def test_losses_and_gradients_of_pieces_are_those_of_the_batch(name, batch):
    config, sizes = compose_config("train", [f"model={name}"]).model, {"feature_dim": 16, "k": 8, **IN_PIECES[name]}
    model = build(config, **sizes, **({"dropout": 0} if "dropout" in config else {}))
    assert model.mean_over_pairs
    found = []
    for pieces in (1, 7):  # of 60 pairs
        model.pieces = pieces
        losses = model.training_losses(batch)
        gradients = torch.autograd.grad(sum(losses.values()), list(model.parameters()), allow_unused=True)
        found.append([*losses.values(), *(gradient for gradient in gradients if gradient is not None)])
    for whole, in_pieces in zip(*found, strict=True):
        torch.testing.assert_close(in_pieces, whole, rtol=1e-4, atol=1e-6)


def test_chen_needs_heads_that_divide_the_features():
    with pytest.raises(InputError, match=r"an even dataset\.feature_dim that model\.nhead=8 divides; it is 20"):
        build(compose_config("train", ["model=chen", "dataset.feature_dim=20"]).model)


def test_connectivity_of_star_fc_is_that_of_its_classifier(circle):
    torch.manual_seed(0)
    model = build(compose_config("train", ["model=star_fc"]).model, feature_dim=2, k=5, width=8)
    found = model.bind(circle, "float32", False, None).connectivity()
    embedded = model.aggregation(torch.from_numpy(circle.features[circle.graph.indices]))
    pairs = torch.stack([embedded[:, None].expand(-1, 5, -1), embedded[circle.graph.indices]], dim=2)
    expected = torch.softmax(model.classifier(pairs.flatten(0, 1).flatten(1)), dim=-1)[:, 1].view(10, 5)
    assert found == pytest.approx(expected.detach().numpy(), abs=1e-5)


SMALL_HILANDER = ["model.width=64", "model.hierarchies=[[8,2]]", "clustering.neighbours=8", "trainer.max_epochs=2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "settings"),
    [
        ("chen", ["model.optimizer.lr=1e-3"]),
        ("star_fc", ["model.optimizer.lr=0.1"]),
        ("gcn_v", ["model.optimizer.lr=0.5"]),
        ("gcn_ve", ["model.optimizer.lr=0.2", "model.width=128", "data.rotate=true"]),
        ("lgcn", ["model.optimizer.lr=0.1", "model.width=64", "data.rotate=true"]),
        ("ada_nets", ["model.optimizer.lr=0.01", "model.width=64", "pairs.pairs_per_face=4"]),
        ("hilander", ["model.optimizer.lr=0.1", *SMALL_HILANDER]),
        ("pairwise", ["model.optimizer.lr=0.01"]),
        (
            "clusformer",
            [
                *(f"model.{name}={value}" for name, value in SMALL["clusformer"].items()),
                "model.optimizer.lr=3e-3",
                "clustering.threshold=0.5",
            ],
        ),
    ],
)
def test_training_beats_thresholded_components(peer, settings, train_on_blobs):
    people = 300 if peer == "hilander" else 60  # of few people it learns the directions
    training, train, unseen = train_on_blobs(peer, "trainer.max_epochs=6", *settings, people=people)

    def quality(rule, model=None):
        scores = [model and model.bind(gallery, "float32", False, None) for gallery in (train, unseen)]
        rule = replace(rule, threshold=choose_threshold(rule, train, scores[0]))
        table = Contingency.of(unseen.labels_true, rule(unseen, scores[1]).labels)
        return pairwise(table).f_score + bcubed(table).f_score

    assert quality(training.evaluation.rule, training.model) > quality(ComponentsRule())


def test_thresholds_are_chosen_with_one_pass_of_the_model(circle):
    class Counting(Known):
        calls = 0

        def connectivity(self, first_row=0):
            Counting.calls += 1
            return super().connectivity(first_row)

    same = (circle.labels_true[circle.graph.indices] == circle.labels_true[:, None]).astype(np.float32)
    threshold = choose_threshold(StarFCRule(threshold=None), circle, Counting(same))
    assert Counting.calls == 1
    assert same_clusters(StarFCRule(threshold)(circle, Known(same)).labels, circle.labels_true)
    assert isinstance(StarFCRule().weigh(circle, Known(same)), KNNGraph)
