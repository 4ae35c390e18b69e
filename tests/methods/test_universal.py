import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcde.clustering.nodes import pool
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery
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
        true = np.append(self.labels_true, np.full(len(labels) - len(self.labels_true), -1))  # decoys are strangers
        clusters = np.split(true[labels.argsort(kind="stable")], np.bincount(labels).cumsum()[:-1])
        identity = [np.bincount(c).argmax() if c[0] >= 0 else -1 - i for i, c in enumerate(clusters)]
        identity = np.array(identity)
        graph = build_knn(pool(features, labels).directions, min(12, len(identity)))
        same = identity[graph.indices] == identity[:, None]
        return graph.indices, np.where(same, 0.95, self.wrong).astype(np.float32)


@pytest.fixture
def gallery():
    """60 people of 12 photographs each, which a strict threshold breaks into pieces."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), 12)
    features = rng.standard_normal((60, 64))[labels] + 1.1 * rng.standard_normal((720, 64))
    features = normalise(features.astype(np.float32), "a test")
    return Gallery("test", features, build_knn(features, 30), labels)


PIECES = {"impostors_per_face": 1e-5, "false_edges": 0.0, "merging": False}


def test_clusters_of_one_identity_merge_until_none_are_left(gallery):
    start = UnsupervisedRule(**PIECES)(gallery).labels
    labels = UniversalRule(**PIECES, false_merges=0.05)(gallery, Knowing(gallery.labels_true)).labels
    assert labels.max() + 1 < 0.5 * (start.max() + 1)
    for cluster in range(start.max() + 1):  # nothing is taken apart
        assert len(np.unique(labels[start == cluster])) == 1
    _, probability = Knowing(gallery.labels_true).merge_probability(gallery.features, labels)
    assert (probability[:, 1:].max(axis=1) > 0.9).mean() < 0.05


def test_what_decoys_reach_as_often_merges_nothing(gallery):
    """The model takes everyone for one identity with the same high probability."""
    start = UnsupervisedRule(**PIECES)(gallery)
    clustering = UniversalRule(**PIECES)(gallery, Knowing(gallery.labels_true, wrong=0.95))
    assert np.array_equal(clustering.labels, start.labels)
    assert "merges" in clustering.seconds


def test_merge_more_moves_the_threshold(gallery):
    scores = Knowing(gallery.labels_true)
    labels = [UniversalRule(**PIECES, merge_more=more)(gallery, scores).labels for more in (-6.0, 0.0, 8.0)]
    assert labels[0].max() > labels[1].max() > labels[2].max()


def test_two_clusters_are_left_alone():
    two = Gallery("two", np.eye(2, 4, dtype=np.float32), build_knn(np.eye(2, 4, dtype=np.float32), 2))
    assert UniversalRule()(two, Knowing(np.array([0, 0]))).labels.tolist() == [0, 1]


@given(st.integers(2, 10), st.integers(0, 200))
def test_pairs_merge_that_are_each_others_best(num_nodes, seed):
    rng = np.random.default_rng(seed)
    indices = np.stack([np.append(i, rng.permutation(np.delete(np.arange(num_nodes), i))) for i in range(num_nodes)])
    both_ways = rng.random((num_nodes, num_nodes)).astype(np.float32)
    probability = np.take_along_axis(both_ways + both_ways.T, indices, axis=1) / 2
    probability[:, 0] = 0
    labels = merge_pairs(indices, probability, 0.6)
    best = [int(indices[i, probability[i].argmax()]) for i in range(num_nodes)]
    for i in range(num_nodes):
        for j in range(i):
            together = best[i] == j and best[j] == i and probability[i].max() >= 0.6
            assert (labels[i] == labels[j]) == together


def test_a_model_is_needed():
    with pytest.raises(InputError, match="clustering=universal needs trained networks"):
        Method("universal", UniversalRule())
