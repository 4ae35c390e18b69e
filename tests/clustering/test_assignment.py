import numpy as np

from lcde.clustering.assignment import assign_faces

KNOWN = np.array([0, 0, 1, 2])


def assign(edges, weights=None, groups=(0, 1, 2)):
    edges = np.array(edges, dtype=np.int64).reshape(-1, 2)
    weights = np.ones(len(edges)) if weights is None else np.array(weights)
    labels = assign_faces(edges, weights, KNOWN, np.array(groups))
    assert np.array_equal(labels[: len(KNOWN)], KNOWN)
    return labels[len(KNOWN) :].tolist()


def test_faces_without_edges_open_the_clusters_of_their_groups():
    assert assign([]) == [3, 4, 5]
    assert assign([], groups=(1, 0, 1)) == [4, 3, 4]


def test_a_face_that_joins_takes_no_other_along():
    assert assign([(4, 5), (5, 4), (5, 2)], [0.4, 0.4, 0.5], groups=(0, 0, 1)) == [3, 1, 4]


def test_the_heaviest_cluster_wins():
    assert assign([(4, 0), (4, 1), (4, 2)], [0.3, 0.3, 0.5]) == [0, 3, 4]
    assert assign([(4, 0), (4, 2), (4, 3)], [0.1, 0.2, 0.3]) == [2, 3, 4]


def test_a_group_of_new_faces_outweighs_a_known_cluster():
    heavy = [(4, 0), (4, 5), (4, 6)]
    assert assign(heavy, [0.5, 0.3, 0.3], groups=(0, 0, 0)) == [3, 3, 3]
    assert assign(heavy, [0.7, 0.3, 0.3], groups=(0, 0, 0)) == [0, 3, 3]


def test_a_face_may_join_a_group_that_is_not_its_own():
    assert assign([(4, 5), (4, 6)], groups=(1, 0, 0)) == [3, 3, 3]


def test_of_two_equal_ones_the_first_wins():
    assert assign([(4, 2), (4, 0), (4, 5)]) == [0, 3, 4]


def test_edges_without_weight_join_too():
    assert assign([(4, 2)], [0.0]) == [1, 3, 4]


def test_nothing_known():
    labels = assign_faces(np.array([[0, 1]]), np.ones(1), np.empty(0, dtype=np.int64), np.array([0, 0, 1]))
    assert labels.tolist() == [0, 0, 1]


def test_noise_is_never_joined():
    known = np.array([0, -1])
    assert assign_faces(np.array([[2, 1], [2, 0]]), np.array([0.9, 0.1]), known, np.array([0])).tolist() == [0, -1, 0]
    assert assign_faces(np.array([[2, 1]]), np.ones(1), known, np.array([0])).tolist() == [0, -1, 1]
