"""Clusformer: its rule beside an oracle, and what its network can and cannot tell."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lcde.configuration import build, compose_config
from lcde.errors import InputError
from lcde.peers import clusformer
from lcde.peers.clusformer import ClusformerRule, QueryTransformer


def neighbourhoods(gallery):
    """Features (N, K, D) of the neighbours of all faces, and which of them are of their identity (N, K)."""
    graph, labels = gallery.graph, gallery.labels_true
    same = (labels[graph.indices] == labels[:, None]).astype(np.float32)
    return torch.from_numpy(gallery.features[graph.indices]), torch.from_numpy(same)


def test_true_connectivity_gives_the_confidences_of_gcn_v(circle):
    _, same = neighbourhoods(circle)
    links = ClusformerRule().weigh(circle, SimpleNamespace(connectivity=same.numpy))
    assert links.indices[:, 1].tolist() == [0, 0, 1, 2, 5, 3, 5, 8, 6, 8]
    rule = ClusformerRule(np.cos(np.deg2rad(10)))
    labels = rule(circle, SimpleNamespace(connectivity=same.numpy)).labels
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]


def test_only_neighbours_of_enough_connectivity_add_to_the_confidence(make_gallery):
    graph = (gallery := make_gallery(0)).graph
    connectivity = np.random.default_rng(0).choice([0.1, 0.6, 0.7, 0.95], graph.indices.shape)
    links = ClusformerRule(accept=0.6).weigh(gallery, SimpleNamespace(connectivity=lambda: connectivity))
    confidence = [
        sum(s if c > 0.6 else -s for s, c in zip(*rows, strict=True))
        for rows in zip(graph.similarities.tolist(), connectivity.tolist(), strict=True)
    ]
    for face, row in enumerate(graph.indices.tolist()):
        column = next((column for column, other in enumerate(row) if confidence[other] > confidence[face]), None)
        assert links.indices[face, 1] == (face if column is None else row[column])
        assert links.similarities[face, 1] == (0 if column is None else graph.similarities[face, column])


def test_heads_must_divide_the_width_of_a_token():
    sentence = r"model\.nhead=6 must divide .*feature_dim=64 and dataset\.k=24; model\.nhead=4 does"
    with pytest.raises(InputError, match=sentence):
        build(compose_config("train", ["model=clusformer"]).model)


def test_the_learning_rate_falls_from_the_first_step_to_zero():
    model = build(compose_config("train", ["model=clusformer", "dataset=ms1m", "model.num_encoder_layers=1"]).model)
    optimizer = model.make_optimizer(model.network.classifier.parameters())
    scheduler, rates = model.make_scheduler(optimizer, total_steps=8), []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([5e-5 * (1 + np.cos(np.pi * step / 8)) for step in range(1, 8)])
    assert optimizer.param_groups[0]["lr"] == 0


def test_similarities_alone_tell_a_query_which_neighbour_it_is_about(make_gallery, monkeypatch):
    torch.manual_seed(0)
    faces, _ = neighbourhoods(make_gallery(0))
    network, order = QueryTransformer(6, nn.Transformer(14, 2, 2, 2, 32, batch_first=True)).eval(), [0, 3, 1, 5, 2, 4]
    with torch.inference_mode():
        assert not torch.allclose(network(faces), network(faces[:, order]), atol=1e-3)
        monkeypatch.setattr(clusformer, "tokens", lambda neighbours: F.pad(neighbours, (0, neighbours.shape[1])))
        prior = network(faces)
        assert torch.allclose(prior, network(faces[:, order]), atol=1e-5)  # whatever stands at a rank
        assert not torch.allclose(prior, prior[:, order], atol=1e-3)  # but by rank


@pytest.mark.slow
def test_a_small_batch_can_be_learnt_by_heart(make_gallery):
    torch.manual_seed(0)
    faces, same = neighbourhoods(make_gallery(0, num_faces=96, feature_dim=16, k=8))
    network = QueryTransformer(8, nn.Transformer(24, 4, 1, 1, 64, dropout=0, batch_first=True))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(400):
        loss = F.binary_cross_entropy_with_logits(network(faces), same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rate = same.mean(dim=0)
    assert loss < 0.02 < F.binary_cross_entropy(rate.expand_as(same), same)
    assert torch.equal(network.eval().connectivity(faces) > 0.5, same > 0.5)
