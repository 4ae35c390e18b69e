"""GCN-V+E: links by the definition, scores and losses of single faces, batches of any size, known scores on blobs."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from lcde.configuration import build, compose_config
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.methods.method import Scores
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.models import scoring
from lcde.peers.gcn_v import GCNVRule, confidence
from lcde.peers.gcn_ve import GCNVERule


class Known(Scores):
    """Given scores."""

    def __init__(self, connectivity, confidence, embedding):
        self._connectivity, self._values = connectivity, np.column_stack([confidence, embedding])

    def connectivity(self, first_row=0):
        return self._connectivity[first_row:]

    def embedding(self):
        return self._values


def make_model(feature_dim=16, k=8, **settings):
    torch.manual_seed(0)
    return build(compose_config("train", ["model=gcn_ve"]).model, feature_dim=feature_dim, k=k, width=12, **settings)


def classified(model, values, indices, face):
    """Candidates of ``face``, nearest first, and their logits, from the graph of them alone."""
    confidence, embedding = values[:, 0], values[:, 1:]
    candidates = [other for other in indices[face].tolist() if confidence[other] > confidence[face]]
    listed = [[b in indices[a] or a in indices[b] for b in candidates] for a in candidates]
    h = embedding[candidates]
    weights = torch.relu(h @ h.T) * torch.tensor(listed).view(len(h), len(h))
    weights.fill_diagonal_(1)
    x, adjacency = h - embedding[face], weights / weights.sum(dim=1, keepdim=True)
    for layer in model.classifier.layers:
        x = torch.relu(layer(torch.cat([x, adjacency @ x], dim=1)))
    return candidates, model.classifier.classifier(x)


def embedded(model, features, indices):
    """Confidence beside the hidden layer (N, 1 + width) of all faces, one at a time."""
    aggregation, regression = model.regression[0], model.regression[1:]
    hidden = [aggregation(features[row][None]) for row in indices.long()]
    return torch.cat([torch.cat([regression(h), h / h.norm()], dim=1) for h in hidden])


def test_links_are_those_of_the_definition(make_graph):
    graph, probability = make_graph(0, 50, 7)
    rng = np.random.default_rng(0)
    confidence = rng.permutation(50).astype(np.float32)
    embedding = normalise(rng.standard_normal((50, 4)).astype(np.float32), "a test")
    gallery = Gallery("test", embedding, graph)
    links = GCNVERule(unsure=0.6).weigh(gallery, Known(probability, confidence, embedding))
    for face, row in enumerate(graph.indices):
        expected, candidates = 0, [place for place in range(7) if confidence[row[place]] > confidence[face]]
        if candidates:
            unsure = confidence[face] < 0.6 * 49
            best = candidates[0] if unsure else max(candidates, key=lambda place: probability[face, place])
            expected = embedding[face] @ embedding[row[best]]
            assert links.indices[face, 1] == row[best]
        assert links.similarities[face, 1] == pytest.approx(expected, abs=1e-6)


def test_true_confidences_and_edges_give_the_identities():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), rng.integers(5, 40, 40))
    X = rng.standard_normal((40, 64))[labels] + 0.6 * rng.standard_normal((len(labels), 64))
    features = normalise(X.astype(np.float32), "a test")
    graph = build_knn(features, 40)
    same = (labels[graph.indices] == labels[:, None]).astype(np.float32)
    true = confidence(torch.from_numpy(features[graph.indices]), torch.from_numpy(same)).numpy()
    found = GCNVERule(0.4)(Gallery("blobs", features, graph), Known(same, true, features)).labels
    table = Contingency.of(labels, found)
    assert min(pairwise(table).f_score, bcubed(table).f_score) > 0.99


def test_scores_are_those_of_each_face(make_gallery):
    gallery = make_gallery(0, 60, 16, 8)
    model = make_model()
    scores = model.bind(gallery, "float32", False, None)
    indices = torch.from_numpy(gallery.graph.indices)
    values = embedded(model, torch.from_numpy(gallery.features), indices)
    assert scores.embedding() == pytest.approx(values.detach().numpy(), abs=1e-6)
    found, number = scores.connectivity(), []
    for face in range(60):
        candidates, logits = classified(model, values, indices, face)
        expected = dict(zip(candidates, logits.softmax(dim=1)[:, 1].tolist(), strict=True))
        assert found[face] == pytest.approx([expected.get(other, 0) for other in indices[face].tolist()], abs=1e-5)
        number.append(len(candidates))
    assert 0 in number and 1 in number and max(number) > 4


def test_its_confidence_serves_the_rule_of_gcn_v(make_gallery):
    gallery, model = make_gallery(0, 60, 16, 8), make_model()
    scores = model.bind(gallery, "float32", False, None)
    joins = GCNVRule().weigh(gallery, scores).similarities[:, 1] > 0
    assert np.array_equal(joins, (scores.connectivity() > 0).any(axis=1))


def test_scores_do_not_depend_on_batches(make_gallery, monkeypatch):
    gallery, model = make_gallery(2, 40, 16, 8), make_model()
    expected = model.bind(gallery, "float32", False, None)
    monkeypatch.setitem(scoring.TOKENS_PER_BATCH, "cpu", 8 * 3)
    found = model.bind(gallery, "float32", False, None)
    assert found.embedding() == pytest.approx(expected.embedding(), abs=1e-5)
    assert found.connectivity() == pytest.approx(expected.connectivity(), abs=1e-5)


def test_losses_are_those_of_single_faces(batch):
    model = make_model(unsure=0.5)
    losses = model.losses(batch, training=True)
    features, indices, labels = batch.graph.features, batch.graph.indices, batch.graph.labels_true
    values = embedded(model, features, indices)
    same = (labels[indices.long()] == labels[:, None]).long()
    ends = batch.pairs.flatten()
    expected = F.mse_loss(values[ends, 0], confidence(features[indices.long()], same)[ends])
    assert losses["confidence_loss"].item() == pytest.approx(expected.item(), abs=1e-6)
    least, logits, targets = values[ends, 0].quantile(0.5), [], []
    for end in ends[values[ends, 0] >= least].tolist():
        candidates, of_end = classified(model, values, indices, end)
        if len(candidates) > 1:
            logits.append(of_end)
            targets.append((labels[candidates] == labels[end]).long())
    assert 0 < len(logits) < 60
    expected = F.cross_entropy(torch.cat(logits), torch.cat(targets))
    assert losses["connectivity_loss"].item() == pytest.approx(expected.item(), abs=1e-5)
    losses["connectivity_loss"].backward()
    assert all(parameter.grad is None for parameter in model.regression.parameters())
    assert all(parameter.grad is not None for parameter in model.classifier.parameters())


def test_a_step_without_candidates_has_a_loss_of_zero(batch):
    model = make_model()
    torch.nn.init.zeros_(model.regression[-1].weight)  # equal confidences
    loss = model.losses(batch, training=True)["connectivity_loss"]
    loss.backward()
    assert loss.item() == 0
    assert not any(parameter.grad.any() for parameter in model.classifier.parameters())


def test_the_share_of_unsure_faces_is_checked():
    with pytest.raises(InputError, match=r"model\.unsure=1\.5 is a share of the faces"):
        make_model(unsure=1.5)


def test_its_checkpoint_names_all_settings():
    model = make_model(unsure=0.4)
    assert dict(model.hparams) == {"feature_dim": 16, "k": 8, "width": 12, "unsure": 0.4}


@pytest.mark.slow
def test_training_tells_candidates_apart_better_than_their_similarity(train_on_blobs):
    settings = "model.optimizer.lr=0.2", "model.width=128", "data.rotate=true"
    training, _, unseen = train_on_blobs("gcn_ve", "trainer.max_epochs=6", *settings)
    connectivity = training.model.bind(unseen, "float32", False, None).connectivity()
    candidates, indices, labels = connectivity > 0, unseen.graph.indices, unseen.labels_true
    same = (labels[indices] == labels[:, None])[candidates]
    auc, of_similarity = (
        roc_auc_score(same, scores[candidates]) for scores in (connectivity, unseen.graph.similarities)
    )
    assert auc > of_similarity + 0.01
