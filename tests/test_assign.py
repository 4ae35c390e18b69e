import numpy as np

from lcde.clustering.assign import assign_faces

KNOWN = np.array([0, 0, 1, 2])


def assign(edges, weights=None):
    edges = np.array(edges, dtype=np.int64).reshape(-1, 2)
    weights = np.ones(len(edges)) if weights is None else np.array(weights)
    return assign_faces(edges, weights, KNOWN, num_new=3).tolist()


def test_faces_without_edges_open_clusters():
    assert assign([]) == [3, 4, 5]


def test_new_faces_that_join_nobody_open_clusters_together():
    assert assign([(4, 6)]) == [3, 4, 3]


def test_a_face_that_joins_takes_no_other_along():
    assert assign([(4, 5), (5, 2)]) == [3, 1, 4]
    assert assign([(4, 6), (4, 5), (5, 2), (6, 5)]) == [3, 1, 3]


def test_the_heaviest_cluster_wins():
    assert assign([(4, 0), (4, 1), (4, 2)], [0.3, 0.3, 0.5]) == [0, 3, 4]
    assert assign([(4, 0), (5, 4), (5, 3)], [0.3, 1.0, 0.4]) == [0, 2, 3]


def test_known_faces_stay_apart_whatever_bridges_them():
    assert assign([(4, 0), (4, 2), (4, 3)], [0.1, 0.2, 0.3]) == [2, 3, 4]


def test_nothing_known():
    labels = assign_faces(np.array([[0, 1]]), np.ones(1), np.empty(0, dtype=np.int64), num_new=3)
    assert labels.tolist() == [0, 0, 1]
