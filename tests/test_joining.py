import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lcde.clustering.components import connected_labels
from lcde.clustering.joining import join_clusters

NONE = np.empty((0, 2), dtype=np.int64)
CHAIN = np.array([[0, 1], [2, 1], [3, 2]])
CONNECTIVITY = np.array([0.9, 0.4, 0.2])


def join(certain, min_connectivity, answers=(1.0, 1.0, 1.0)):
    def ask(edges):
        return np.array([answers[CHAIN.tolist().index(edge)] for edge in edges.tolist()], dtype=np.float32)

    labels, probability = join_clusters(
        CHAIN, NONE, CONNECTIVITY, np.array(certain), 4, ask, 0.5, min_connectivity=min_connectivity
    )
    return labels.tolist(), np.isnan(probability).tolist()


def test_edges_of_hardly_any_connectivity_are_dropped_unasked():
    nothing = [False, False, False]
    assert join(nothing, 0.0) == ([0, 0, 0, 0], nothing)
    assert join(nothing, 0.2) == ([0, 0, 0, 0], nothing)
    assert join(nothing, 0.3) == ([0, 0, 0, 1], [False, False, True])


def test_certain_edges_join_unasked():
    assert join([False, True, False], 0.0, (1.0, 0.0, 0.0)) == ([0, 0, 0, 1], [False, True, False])
    assert join([False, False, True], 0.3, (1.0, 0.0, 0.0)) == ([0, 0, 1, 1], [False, False, True])


@given(st.integers(0, 2**32 - 1))
def test_labels_are_those_of_asking_about_all_edges(seed):
    rng = np.random.default_rng(seed)
    edges = np.stack([np.arange(1, 30), rng.integers(0, np.arange(1, 30))], axis=1)
    similar = rng.integers(0, 30, size=(8, 2))
    answers = dict(zip(map(tuple, edges.tolist()), rng.random(29).astype(np.float32), strict=True))
    asked = []

    def ask(some):
        asked.extend(map(tuple, some.tolist()))
        return np.array([answers[edge] for edge in map(tuple, some.tolist())], dtype=np.float32)

    certain = rng.random(29) < 0.2
    labels, probability = join_clusters(edges, similar, rng.random(29), certain, 30, ask, 0.5, 0.0)
    joined = certain | (np.array([answers[edge] for edge in map(tuple, edges.tolist())]) > 0.5)
    assert np.array_equal(labels, connected_labels(np.concatenate([edges[joined], similar]), 30))
    assert len(asked) == len(set(asked)) == np.isfinite(probability).sum() <= (~certain).sum()
