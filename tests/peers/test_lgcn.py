"""L-GCN: subgraphs computed by sets, values of the literature, batches of any size, a short training."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lcde.clustering.density import symmetrise
from lcde.configuration import build, compose_config
from lcde.errors import InputError
from lcde.methods.method import Scores
from lcde.models import scoring
from lcde.peers import lgcn
from lcde.peers.lgcn import LGCNRule, pivot_subgraph


def subgraph_by_sets(indices, centre, second_hop, nearest):
    """Nodes in ascending order, and their adjacency (U, U), before rows are divided by their sums."""
    nodes = set(indices[centre].tolist())
    for neighbour in indices[centre, 1:]:
        nodes |= set(indices[neighbour, 1 : 1 + second_hop].tolist())
    listed = {node: set(indices[node, 1 : 1 + nearest].tolist()) for node in nodes}
    ordered = sorted(nodes)
    return ordered, np.array([[float(b in listed[a] or a in listed[b]) for b in ordered] for a in ordered])


def make_model(feature_dim, k, **settings):
    torch.manual_seed(0)
    model = build(compose_config("train", ["model=lgcn"]).model, feature_dim=feature_dim, k=k, width=16, **settings)
    model.norm.running_mean.normal_(std=0.1)
    model.norm.running_var.uniform_(0.5, 2)
    return model


def test_subgraph_is_the_published_one(circle):
    indices = torch.from_numpy(circle.graph.indices[:, :4])
    nodes, real, neighbours, adjacency = pivot_subgraph(indices, torch.tensor([3]), second_hop=1, nearest=2)
    assert (nodes.tolist(), real.all()) == ([[0, 1, 2, 3]], True)
    assert nodes[0, neighbours[0]].tolist() == [2, 1, 0]
    assert (adjacency > 0).sum(dim=2).tolist() == [[2, 3, 3, 2]]
    assert not adjacency[0, 0, 3] and not adjacency[0, 3, 0]
    assert adjacency.sum(dim=2) == pytest.approx(np.ones((1, 4)))


@pytest.mark.parametrize(("second_hop", "nearest"), [(3, 2), (0, 5), (9, 9)])
def test_subgraphs_are_those_of_sets(make_gallery, second_hop, nearest):
    indices = make_gallery(0, 60, 8, 6, duplicates=9).graph.indices
    found = pivot_subgraph(torch.from_numpy(indices), torch.arange(60), second_hop, nearest)
    for centre, (nodes, real, neighbours, adjacency) in enumerate(zip(*found, strict=True)):
        expected, connected = subgraph_by_sets(indices, centre, second_hop, nearest)
        size = len(expected)
        assert (nodes[real].tolist(), real[:size].all()) == (expected, True)
        assert nodes[neighbours].tolist() == indices[centre, 1:].tolist()
        degree = connected.sum(axis=1, keepdims=True).clip(1)
        assert adjacency[:size, :size] == pytest.approx(connected / degree)
        assert not adjacency[size:].any() and not adjacency[:, size:].any()
    assert found.real.all() == (second_hop == 0)  # else, subgraphs of several sizes are in the batch


def test_connectivity_is_that_of_each_subgraph(make_gallery):
    gallery = make_gallery(1, 40, 8, 6)
    model = make_model(8, 6, second_hop=2, nearest=3)
    found = model.bind(gallery, "float32", False, None).connectivity()
    for centre in range(40):
        nodes, connected = subgraph_by_sets(gallery.graph.indices, centre, 2, 3)
        adjacency = torch.from_numpy(connected / connected.sum(axis=1, keepdims=True).clip(1)).float()
        x = model.norm(torch.from_numpy(gallery.features[nodes] - gallery.features[centre]))
        for layer in model.network.layers:
            x = torch.relu(layer(torch.cat([x, adjacency @ x], dim=1)))
        rows = [nodes.index(neighbour) for neighbour in gallery.graph.indices[centre, 1:]]
        expected = model.network.classifier(x[rows]).softmax(dim=1)[:, 1].detach().numpy()
        assert found[centre] == pytest.approx([1, *expected], abs=1e-5)
    assert found[:, 1:].std() > 1e-3


@pytest.mark.parametrize("faces", [1, 7])
def test_scores_do_not_depend_on_batches(make_gallery, monkeypatch, faces):
    gallery, model = make_gallery(2, 40, 8, 6), make_model(8, 6)
    expected = model.bind(gallery, "float32", False, None).connectivity()
    monkeypatch.setitem(scoring.TOKENS_PER_BATCH, "cpu", 6 * 9)
    monkeypatch.setattr(lgcn, "FACES_AT_A_TIME", faces)
    assert model.bind(gallery, "float32", False, None).connectivity() == pytest.approx(expected, abs=1e-5)


def test_the_input_is_normalised_over_distinct_faces_alone(batch):
    model = make_model(16, 8)
    model.norm.momentum = 1.0
    model.losses(batch, training=True)
    indices, features = batch.graph.indices.numpy(), batch.graph.features.numpy()
    x = [
        features[subgraph_by_sets(indices, centre, 10, 10)[0]] - features[centre]
        for centre in batch.pairs.flatten().tolist()
    ]
    assert model.norm.running_mean == pytest.approx(np.concatenate(x).mean(axis=0), abs=1e-5)


def test_the_loss_is_of_the_neighbours_of_both_ends(batch):
    model = make_model(16, 8).eval()
    loss = model.losses(batch, training=False)["connectivity_loss"]
    centres = batch.pairs.flatten()
    neighbours = batch.graph.indices[centres].long()[:, 1:]
    same = batch.graph.labels_true[neighbours] == batch.graph.labels_true[centres][:, None]
    probability = model.networks(torch.float32).connectivity_in_graph(batch.graph, centres)[:, 1:]
    expected = -torch.where(same, probability, 1 - probability).log().mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_rule_splits_what_is_too_large_by_the_mean_of_both_directions(circle):
    class Known(Scores):
        def connectivity(self, first_row=0):
            return connectivity

    same = circle.labels_true[circle.graph.indices] == circle.labels_true[:, None]
    connectivity = np.where(same, 0.9, 0.3).astype(np.float32)
    assert len(np.unique(LGCNRule(0.0, 300, 0.6)(circle, Known()).labels)) == 1
    labels = LGCNRule(0.0, 4, 0.6)(circle, Known()).labels
    assert np.array_equal(labels[:, None] == labels, circle.labels_true[:, None] == circle.labels_true)
    weights = LGCNRule().weigh(circle, Known()).similarities
    assert weights == pytest.approx(symmetrise(connectivity, circle.graph.indices))


def test_counts_of_neighbours_are_checked():
    with pytest.raises(InputError, match=r"model\.second_hop=-1 and model\.nearest=10 count neighbours"):
        build(compose_config("train", ["model=lgcn", "model.second_hop=-1"]).model)


@pytest.mark.slow
def test_a_short_training_tells_neighbours_apart(train_on_blobs):
    settings = "model.optimizer.lr=0.1", "model.width=64", "data.rotate=true"
    training, _, unseen = train_on_blobs("lgcn", "trainer.max_epochs=6", *settings)
    connectivity = training.model.bind(unseen, "float32", False, None).connectivity()
    same = unseen.labels_true[unseen.graph.indices] == unseen.labels_true[:, None]
    auc, of_similarity = (
        roc_auc_score(same[:, 1:].ravel(), scores[:, 1:].ravel())
        for scores in (connectivity, unseen.graph.similarities)
    )
    assert auc > max(0.95, of_similarity)
