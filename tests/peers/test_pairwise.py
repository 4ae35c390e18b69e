"""Pairwise classification after Liu et al., beside oracles that go from face to face."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lcde.configuration import build, compose_config
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.peers.pairwise import PairwiseRule, rank_weighted_density


def probabilities(of_edge):
    return SimpleNamespace(edge_probability=lambda edges: np.array([of_edge(*edge) for edge in edges.tolist()]))


def links(graph):
    """Each face that has a denser neighbour, with the first one."""
    density = [
        sum(similarity * (1 - rank / graph.k) for rank, similarity in enumerate(row) if rank > 0)
        for row in graph.similarities.astype(float)
    ]
    first = [
        next((other for other in row if density[other] > density[face]), None) for face, row in enumerate(graph.indices)
    ]
    return {(face, int(other)) for face, other in enumerate(first) if other is not None}


def test_density_weighs_less_with_every_rank():
    similarities = np.array([[1, 0.8, 0.4, 0.2], [1, 0.7, 0.6, 0.2]])
    expected = [0.8 * 0.75 + 0.4 * 0.5 + 0.2 * 0.25, 0.7 * 0.75 + 0.6 * 0.5 + 0.2 * 0.25]
    assert rank_weighted_density(similarities) == pytest.approx(expected)


def test_the_classifier_is_asked_about_the_first_denser_neighbour(make_gallery):
    gallery = make_gallery(1)
    asked = []
    weights = PairwiseRule().weigh(gallery, probabilities(lambda *edge: asked.append(edge) or 0.25 + edge[0] / 100))
    assert set(asked) == links(gallery.graph)
    assert len(asked) == len(set(asked)) < 40
    for face, other in asked:
        assert weights.indices[face].tolist() == [face, other]
        assert weights.similarities[face, 1] == pytest.approx(0.25 + face / 100)


@pytest.mark.parametrize("seed", range(4))
def test_true_labels_as_classifier_reach_the_upper_bound_of_peak_links(make_gallery, seed):
    gallery = make_gallery(seed, num_faces=80, k=10)
    truth = gallery.labels_true
    found = PairwiseRule(0.5)(gallery, probabilities(lambda i, j: float(truth[i] == truth[j]))).labels
    cluster = np.arange(80)
    for face, other in links(gallery.graph):
        if truth[face] == truth[other]:
            cluster[cluster == cluster[face]] = cluster[other]
    same, together = truth[:, None] == truth, cluster[:, None] == cluster
    table, pairs = Contingency.of(truth, found), np.triu(np.ones((80, 80), dtype=bool), 1)
    assert np.array_equal(found[:, None] == found, together)
    assert pairwise(table).precision == bcubed(table).precision == 1
    assert 0.5 < pairwise(table).recall == pytest.approx((together & pairs).sum() / (same & pairs).sum())
    assert bcubed(table).recall == pytest.approx((together.sum(axis=1) / same.sum(axis=1)).mean())


def test_edge_probabilities_are_those_of_faces_beside_the_means_of_their_neighbours(make_gallery):
    torch.manual_seed(0)
    gallery = make_gallery(2)
    model = build(compose_config("train", ["model=pairwise"]).model, feature_dim=8, k=6, width=16)
    edges = np.array([[0, 7], [3, 30], [30, 3]])
    found = model.bind(gallery, "float32", False, None).edge_probability(edges)
    for edge, probability in zip(edges, found, strict=True):
        ends = []
        for face in edge:
            weights = gallery.graph.similarities[face].clip(0)
            mean = weights @ gallery.features[gallery.graph.indices[face]] / weights.sum()
            ends += [gallery.features[face], mean]
        logits = model.classifier(torch.from_numpy(np.concatenate(ends)).float()[None])
        assert probability == pytest.approx(torch.softmax(logits, dim=1)[0, 1].item(), abs=1e-5)
