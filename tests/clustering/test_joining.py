import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lcde.clustering.components import connected_labels
from lcde.clustering.joining import join_clusters


def test_edges_join_above_the_threshold_and_superfluous_ones_are_not_asked_about():
    candidates = np.array([[0, 1], [2, 3], [1, 2], [3, 0]])
    answers = {(0, 1): 0.7, (2, 3): 0.5, (1, 2): 0.9, (3, 0): 0.8}

    def ask(edges):
        return np.array([answers[tuple(edge)] for edge in edges.tolist()], dtype=np.float32)

    labels, probability = join_clusters(np.array([[4, 1]]), candidates, 5, ask, 0.5)
    assert labels.tolist() == [0] * 5
    assert probability.tolist() == np.float32([0.7, 0.5, 0.9, 0.8]).tolist()
    labels, probability = join_clusters(np.array([[0, 1], [0, 2]]), candidates, 5, ask, 0.85)
    assert labels.tolist() == [0, 0, 0, 1, 2]
    assert np.isnan(probability).tolist() == [True, False, True, False]


@given(st.integers(0, 2**32 - 1))
def test_labels_are_those_of_asking_about_all_edges(seed):
    rng = np.random.default_rng(seed)
    edges = np.stack([np.arange(1, 30), rng.integers(0, np.arange(1, 30))], axis=1)
    edges, similar = rng.permutation(edges), rng.integers(0, 30, size=(8, 2))
    answers = dict(zip(map(tuple, edges.tolist()), rng.random(29).astype(np.float32), strict=True))
    asked = []

    def ask(some):
        asked.extend(map(tuple, some.tolist()))
        return np.array([answers[edge] for edge in map(tuple, some.tolist())], dtype=np.float32)

    labels, probability = join_clusters(similar, edges, 30, ask, 0.5)
    joined = np.array([answers[edge] for edge in map(tuple, edges.tolist())]) > 0.5
    assert np.array_equal(labels, connected_labels(np.concatenate([edges[joined], similar]), 30))
    assert len(asked) == len(set(asked)) == np.isfinite(probability).sum()
