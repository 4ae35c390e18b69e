import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcde.clustering.nodes import pool
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.methods.method import Method, Scores
from lcde.methods.universal import UniversalRule, merge_pairs
from lcde.methods.unsupervised import UnsupervisedRule


class Knowing(Scores):
    """Knows the identities: 0.95 for two clusters of one identity, ``wrong`` for others."""

    def __init__(self, labels_true, wrong=0.05):
        self.labels_true, self.wrong = labels_true, wrong

    def merge_probability(self, features, labels):
        clusters = [self.labels_true[labels == label] for label in range(labels.max() + 1)]
        identity = np.array([np.bincount(of_cluster).argmax() for of_cluster in clusters])
        graph = build_knn(pool(features, labels).directions, min(12, len(identity)))
        same = identity[graph.indices] == identity[:, None]
        return graph.indices, np.where(same, 0.95, self.wrong).astype(np.float32)


@pytest.fixture
def gallery(make_gallery):
    return make_gallery(0, num_faces=120, feature_dim=16, k=12)


def test_clusters_of_one_identity_merge_until_none_are_left(gallery):
    start = UnsupervisedRule(impostors_per_face=1e-6)(gallery).labels
    labels = UniversalRule(impostors_per_face=1e-6)(gallery, Knowing(gallery.labels_true)).labels
    assert labels.max() < start.max()
    for cluster in range(start.max() + 1):  # nothing is taken apart
        assert len(np.unique(labels[start == cluster])) == 1
    _, probability = Knowing(gallery.labels_true).merge_probability(gallery.features, labels)
    assert probability[:, 1:].max() < 0.9


def test_merge_more_lowers_the_threshold(gallery):
    scores = Knowing(gallery.labels_true, wrong=0.2)
    clusters = [
        UniversalRule(thresholds=(0.5,), merge_more=more)(gallery, scores).labels.max() for more in (-4.0, 0.0, 2.0)
    ]
    assert clusters[0] > clusters[1] > clusters[2]


def test_no_probability_reaches_a_threshold_of_1(gallery):
    start = UnsupervisedRule(impostors_per_face=1e-4)(gallery)
    clustering = UniversalRule(thresholds=(1.0,), impostors_per_face=1e-4)(gallery, Knowing(gallery.labels_true))
    assert np.array_equal(clustering.labels, start.labels)
    assert "merges" in clustering.seconds


@given(st.integers(2, 10), st.integers(0, 200))
def test_pairs_merge_that_are_each_others_best(num_nodes, seed):
    rng = np.random.default_rng(seed)
    indices = np.stack([np.append(i, rng.permutation(np.delete(np.arange(num_nodes), i))) for i in range(num_nodes)])
    both_ways = rng.random((num_nodes, num_nodes)).astype(np.float32)
    probability = np.take_along_axis(both_ways + both_ways.T, indices, axis=1) / 2
    labels = merge_pairs(indices, probability, 0.6)
    best = [int(indices[i, 1 + probability[i, 1:].argmax()]) for i in range(num_nodes)]
    for i in range(num_nodes):
        for j in range(i):
            together = best[i] == j and best[j] == i and probability[i, 1:].max() > 0.6
            assert (labels[i] == labels[j]) == together


def test_thresholds_are_probabilities():
    with pytest.raises(InputError, match=r"clustering\.thresholds=\[0\.9, 2\] must be numbers from 0 to 1"):
        UniversalRule(thresholds=[0.9, 2])


def test_a_model_is_needed():
    with pytest.raises(InputError, match="clustering=universal needs trained networks"):
        Method("universal", UniversalRule())
