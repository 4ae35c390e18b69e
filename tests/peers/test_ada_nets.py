"""Ada-NETS: values computed apart on ten points of a circle, oracles, and scores that no batch changes."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lcde.clustering.components import connected_labels
from lcde.configuration import build, compose_config
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.methods.method import Scores
from lcde.peers import ada_nets
from lcde.peers.ada_nets import AdaNETSRule, best_count, filtered, hinge_loss, structure_graph


class Known(Scores):
    """Given values of faces."""

    def __init__(self, embedding):
        self._embedding = embedding

    def embedding(self):
        return self._embedding


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = compose_config("train", ["model=ada_nets", "model.width=12", "dataset.feature_dim=8", "dataset.k=6"])
    return build(config.model)


def count_of(graph, labels):
    """The best number (N,) of neighbours."""
    labels = torch.from_numpy(labels)
    same = labels[torch.from_numpy(graph.indices).long()] == labels[:, None]
    return best_count(same.long(), torch.bincount(labels)[labels]).numpy()


def test_structure_space_is_the_published_one(circle):
    graph = structure_graph(circle.graph)
    assert graph.indices[[2, 6]].tolist() == [[2, 3, 1, 0, 4], [6, 5, 7, 8, 4]]
    assert 1 - graph.similarities[6] == pytest.approx([0, 0.1422, 0.2552, 0.3928, 0.4077], abs=1e-4)


@pytest.mark.parametrize(("seed", "k"), [(0, 2), (1, 3), (2, 9), (3, 12)])
def test_structure_space_is_that_of_sets(make_gallery, monkeypatch, seed, k):
    monkeypatch.setattr(ada_nets, "ROWS", 7)
    graph = make_gallery(seed, 50, 4, k, duplicates=3).graph

    def mutual(face, first):
        return {other for other in graph.indices[face, :first] if face in graph.indices[other, :first]}

    sets = []
    for face in range(50):
        own = mutual(face, k)
        nearer = [mutual(other, k // 2) for other in own]
        sets.append(own.union(*(near for near in nearer if 3 * len(near & own) >= 2 * len(near))))
    found = structure_graph(graph)
    for face, row in enumerate(graph.indices):
        jaccard = [len(sets[face] & sets[other]) / len(sets[face] | sets[other]) for other in row]
        similarity = 0.7 * np.array(jaccard) + 0.3 * graph.similarities[face]
        order = [0, *(1 + np.argsort(-similarity[1:], kind="stable"))]
        assert found.similarities[face] == pytest.approx(similarity[order], abs=1e-6)
        assert dict(zip(found.indices[face], found.similarities[face], strict=True)) == pytest.approx(
            dict(zip(row, similarity, strict=True)), abs=1e-6
        )
    assert np.array_equal(found.indices[:, 0], np.arange(50))


def test_best_count_is_the_published_one(circle):
    assert count_of(structure_graph(circle.graph), circle.labels_true).tolist() == [4, 4, 4, 4, 3, 3, 2, 2, 2, 1]


def test_best_count_has_the_best_f_score():
    rng = np.random.default_rng(0)
    same, size = rng.integers(2, size=(200, 7)), rng.integers(7, 30, size=200)
    same[:, 0] = 1
    for row, total, count in zip(same, size, best_count(torch.tensor(same), torch.tensor(size)), strict=True):
        found = np.cumsum(row)
        precision, recall = found / np.arange(1, 8), found / total
        f_score = 1.25 * precision * recall / (0.25 * precision + recall)
        assert f_score[count - 1] == pytest.approx(f_score.max())


def test_true_counts_and_perfect_embeddings_give_the_identities():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(15), rng.integers(5, 12, 15))
    X = rng.standard_normal((15, 32))[labels] + 0.2 * rng.standard_normal((len(labels), 32))
    features = normalise(X.astype(np.float32), "a test")
    gallery = Gallery("blobs", features, build_knn(features, 8))
    graph = structure_graph(gallery.graph)
    edges = filtered(graph.indices, count_of(graph, labels))
    assert np.array_equal(connected_labels(np.stack(edges.nonzero(), axis=1), len(labels)), labels)
    assert np.array_equal(AdaNETSRule(0.96)(gallery, Known(np.eye(15, dtype=np.float32)[labels])).labels, labels)


def test_edges_lead_both_ways_to_the_first_neighbours():
    indices = np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1], [3, 2, 1]], dtype=np.int32)
    found = filtered(indices, np.array([1, 2, 1, 3])).toarray()
    assert np.argwhere(np.triu(found)).tolist() == [[0, 0], [1, 1], [1, 2], [1, 3], [2, 2], [2, 3], [3, 3]]
    assert np.array_equal(found, found.T)


def test_hinge_loss_takes_all_genuine_pairs_and_the_worst_impostors():
    rng = np.random.default_rng(0)
    outputs, labels = normalise(rng.standard_normal((9, 5)).astype(np.float32), "a test"), rng.integers(3, size=9)
    similarities, same = outputs @ outputs.T, labels[:, None] == labels
    expected = np.mean([max(0, 0.9 - similarity) for similarity in similarities[same]]) + 1 + similarities[~same].max()
    assert hinge_loss(torch.from_numpy(outputs), torch.from_numpy(labels)).item() == pytest.approx(expected)
    alone = hinge_loss(torch.from_numpy(outputs), torch.zeros(9)).item()
    assert alone == pytest.approx(np.maximum(0, 0.9 - similarities).mean())


def test_outputs_are_those_of_dense_matrices(model, make_gallery):
    gallery = make_gallery(0)
    found = model.bind(gallery, "float32", False, None).embedding()
    indices, x = structure_graph(gallery.graph).indices, torch.from_numpy(gallery.features)
    with torch.no_grad():
        model.filter.share.bias += 0.5
        kept = [min(max(round(6 * model.filter(x[row][None]).item()), 1), 6) for row in indices]
        edges = torch.eye(40)
        for face, (row, count) in enumerate(zip(indices, kept, strict=True)):
            edges[face, row[:count]] = edges[row[:count], face] = 1
        edges /= edges.sum(dim=1, keepdim=True)
        expected = F.normalize(model.second(edges @ F.normalize(model.first(edges @ x), dim=-1)), dim=-1)
    assert len(set(kept)) > 2
    assert np.abs(found - expected.numpy()).max() > 1e-3
    assert model.bind(gallery, "float32", False, None).embedding() == pytest.approx(expected.numpy(), abs=1e-5)


def test_outputs_do_not_depend_on_batches(model, make_gallery, monkeypatch):
    gallery = make_gallery(0)
    expected = model.bind(gallery, "float32", False, None).embedding()
    monkeypatch.setattr(ada_nets, "ROWS", 3)
    monkeypatch.setattr("lcde.data.gallery.ROWS", 7)
    assert model.bind(gallery, "float32", False, None).embedding() == pytest.approx(expected, abs=1e-6)


def test_filter_and_convolutions_learn_at_their_own_rates(model):
    groups = model.make_optimizer(model.parameter_groups()).param_groups
    assert [group["lr"] for group in groups] == [0.01, 0.1]
    held = [parameter for group in groups for parameter in group["params"]]
    assert set(map(id, held)) == set(map(id, model.parameters())) and len(held) == len(list(model.parameters()))


def test_an_odd_width_is_refused():
    with pytest.raises(InputError, match=r"model=ada_nets needs an even model\.width; it is 5"):
        build(compose_config("train", ["model=ada_nets", "model.width=5"]).model)
