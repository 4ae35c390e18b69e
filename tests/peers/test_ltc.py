"""LTC: proposals beside definitions, the choice among them, and training."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lcde.configuration import build, compose_config
from lcde.data.datasets import Parts
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery, KNNGraph
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.methods.cdp import CDPRule
from lcde.methods.classical import ComponentsRule, choose_threshold
from lcde.methods.method import Scores
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.peers import ltc
from lcde.peers.ltc import LTCRule, deoverlap, grown, inner_edges, joined, padded, stepped, true_overlap
from lcde.training.fit import set_up

RULE = LTCRule([0.5, 0.6, 0.7], [0.6, 0.7], [[2, 8], [3, 5]])


class TrueOverlap(Scores):
    def __init__(self, labels_true):
        self.labels_true = labels_true

    def identity_overlap(self, clusters):
        return true_overlap(clusters, self.labels_true)


class Faces:
    """A data set of one training part, and of another that is held out."""

    k, feature_dim = 16, 32

    def __init__(self, train, held_out):
        self.parts = Parts(train, held_out, [])

    def load(self, train):
        return self.parts


def make_blobs(seed, spread=0.14):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(60), rng.integers(4, 25, 60))
    people = normalise(rng.standard_normal((60, 32)).astype(np.float32), "people")
    X = people[labels] + spread * rng.standard_normal((len(labels), 32))
    features = normalise(X.astype(np.float32), "faces")
    return Gallery("blobs", features, build_knn(features, 16), labels, held_out=seed > 0)


@pytest.fixture(scope="module")
def blobs():
    return make_blobs(0)


def quality(gallery, labels):
    table = Contingency.of(gallery.labels_true, labels)
    return pairwise(table).f_score + bcubed(table).f_score


def model_of(**settings):
    return build(compose_config("train", ["model=ltc"]).model, feature_dim=32, k=16, **settings)


def test_grown_proposals_are_components_of_bounded_size(blobs, monkeypatch):
    monkeypatch.setattr(ltc, "LARGEST_GROUP", 12)
    found, labels = grown(blobs.graph, 0.5), CDPRule(0.5, max_size=12)(blobs).labels
    expected = {tuple(np.flatnonzero(labels == label)) for label in np.unique(labels)}
    assert {tuple(faces) for faces in found} == {faces for faces in expected if len(faces) >= 3}


def test_joined_proposals_are_unions_of_components_with_similar_means(blobs):
    labels = CDPRule(0.75, max_size=300)(blobs).labels
    means = normalise(np.stack([blobs.features[labels == label].mean(axis=0) for label in np.unique(labels)]), "means")
    found = joined(blobs, 0.75, 3, 4)
    assert found
    for faces in found:
        groups = np.unique(labels[faces])
        assert np.array_equal(faces, np.flatnonzero(np.isin(labels, groups)))
        assert 2 <= len(groups) <= 4
        similar = means[groups] @ means[groups].T - np.eye(len(groups))
        assert similar.max(axis=1).min() >= 0.4


def test_perfect_scores_reach_the_upper_bound(blobs):
    proposals = RULE.proposals(blobs)
    overlap = true_overlap(proposals, blobs.labels_true)
    labels = RULE(blobs, TrueOverlap(blobs.labels_true)).labels
    sets = [set(faces.tolist()) for faces in proposals]
    best = [
        max((number for number, faces in enumerate(sets) if face in faces), key=overlap.__getitem__, default=None)
        for face in range(len(blobs))
    ]
    for label in np.unique(labels):
        of_cluster = np.flatnonzero(labels == label)
        assert len({best[face] for face in of_cluster}) == 1
        assert best[of_cluster[0]] is not None or len(of_cluster) == 1
    singles = [LTCRule([threshold], [], []) for threshold in RULE.thresholds]
    bound = quality(blobs, labels)
    assert all(bound > quality(blobs, rule(blobs, TrueOverlap(blobs.labels_true)).labels) for rule in singles)
    identities = [np.flatnonzero(blobs.labels_true == label) for label in range(60)]
    overlap = true_overlap([*proposals, *identities], blobs.labels_true)
    assert quality(blobs, deoverlap([*proposals, *identities], overlap, len(blobs))) == 2


def test_a_pure_proposal_outranks_its_noisy_superset():
    labels_true, pure, noisy = np.array([0, 0, 0, 0, 1, 2]), np.arange(4), np.arange(6)
    overlap = true_overlap([noisy, pure, pure[:3]], labels_true)
    assert overlap == pytest.approx([4 / 6, 1, 3 / 4])
    assert deoverlap([noisy, pure, pure[:3]], overlap, 7).tolist() == [0, 0, 0, 0, 1, 1, 2]


def test_edges_are_those_among_the_faces(blobs):
    faces = np.flatnonzero(blobs.labels_true < 3)
    dense = np.zeros((len(blobs), len(blobs)))
    np.put_along_axis(dense, blobs.graph.indices, blobs.graph.similarities.clip(0), axis=1)
    dense = np.maximum(dense, dense.T)[np.ix_(faces, faces)]
    assert inner_edges(blobs.graph, faces) == pytest.approx(dense / dense.sum(axis=1, keepdims=True), abs=1e-6)


def test_padding_changes_no_score(blobs):
    torch.manual_seed(0)
    model, proposals = model_of(), RULE.proposals(blobs)[:50]
    found = model.bind(blobs, "float32", False, None).identity_overlap(proposals)
    alone = [model.network(*padded(blobs, [faces])).item() for faces in proposals]
    assert found == pytest.approx(alone, abs=1e-5)
    assert len(model.bind(blobs, "float32", False, None).identity_overlap([])) == 0


def test_the_learning_rate_falls_in_steps():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = stepped(optimizer, total_steps=10, after=[0.5, 0.8], factor=0.1), []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)


def test_what_does_not_fit_is_told(blobs, circle):
    with pytest.raises(InputError, match=r"trained with feature_dim=32 and k=16, but circle"):
        model_of().bind(circle, "float32", False, None)
    with pytest.raises(InputError, match=r"data\.proposals=\[\[16, 1\.0\]\] gives no group of 3 faces; lower its"):
        ltc.ProposalDataModule(Faces(blobs, None), [[16, 1.0]], 32, 0)
    with pytest.raises(InputError, match=r"data\.batch_size=0 must be a whole number of at least 1"):
        ltc.ProposalDataModule(None, [], 0, 0)
    with pytest.raises(InputError, match=r"data\.seed=-1 must be a whole number of at least 0"):
        ltc.ProposalDataModule(None, [], 32, -1)
    with pytest.raises(InputError, match=r"clustering\.joined_thresholds=\[2\] must be similarities from -1 to 1"):
        LTCRule(joined_thresholds=[2])
    with pytest.raises(
        InputError, match=r"clustering\.joins=\[\[2, 8\], \[1, 5\]\] must be pairs of numbers of at least 2"
    ):
        LTCRule(joins=[[2, 8], [1, 5]])
    other = build(compose_config("train", ["model=gcn_v"]).model, feature_dim=32, k=16)
    with pytest.raises(InputError, match=r"the model judges no clusters; choose another clustering"):
        RULE(blobs, other.bind(blobs, "float32", False, None))


def test_batches_hold_each_proposal_once(blobs):
    held_out = make_blobs(1)
    data = ltc.ProposalDataModule(Faces(blobs, held_out), [[16, 0.5], [8, 0.6]], 16, seed=0)
    data.trainer = SimpleNamespace(current_epoch=0)
    first, again = (torch.cat([batch[2] for batch in data.train_dataloader()]) for _ in range(2))
    data.trainer.current_epoch = 1
    other = torch.cat([batch[2] for batch in data.train_dataloader()])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first) == len(data.train_proposals) // 16 * 16
    expected = [*grown(held_out.graph, 0.5)]
    expected += grown(KNNGraph(held_out.graph.indices[:, :8], held_out.graph.similarities[:, :8]), 0.6)
    features, edges, overlap = (list(parts) for parts in zip(*data.val_dataloader()[0], strict=True))
    assert np.array_equal(torch.cat(overlap), true_overlap(expected, held_out.labels_true))
    assert np.array_equal(features[0][0, : len(expected[0])], held_out.features[expected[0]])
    assert edges[0].shape[1] == features[0].shape[1] == max(map(len, expected[:16]))


@pytest.mark.slow
def test_training_beats_thresholded_components(blobs, tmp_path):
    unseen = make_blobs(1)
    settings = "~logger", "callbacks=training", "trainer=cpu", "trainer.max_epochs=30", f"run_dir={tmp_path}"
    kinds = "data.proposals=[[16,0.4],[16,0.5],[16,0.6],[16,0.7],[8,0.4],[8,0.6]]", "data.batch_size=8"
    config = compose_config("train", ["model=ltc", *settings, *kinds, "model.optimizer.lr=0.1"])
    torch.manual_seed(0)
    training = set_up(config, "ltc", Faces(blobs, None), None)
    training.trainer.fit(training.model, training.datamodule)
    rule = LTCRule([0.4, 0.5, 0.6, 0.7], [0.6, 0.7], [[2, 8], [3, 5]])
    proposals = rule.proposals(unseen)
    found = training.model.bind(unseen, "float32", False, None).identity_overlap(proposals)
    assert np.corrcoef(found, true_overlap(proposals, unseen.labels_true))[0, 1] > 0.3
    components = ComponentsRule()
    components = replace(components, threshold=choose_threshold(components, blobs))
    assert quality(unseen, deoverlap(proposals, found, len(unseen))) > quality(unseen, components(unseen).labels)
