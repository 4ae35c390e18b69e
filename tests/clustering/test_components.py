import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lcde.clustering.components import connected_labels, label_noise

graphs = st.integers(1, 20).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=25))
)


def union_find(edges, num_faces):
    parent = list(range(num_faces))

    def root(face):
        while parent[face] != face:
            face = parent[face]
        return face

    for a, b in edges:
        parent[max(root(a), root(b))] = min(root(a), root(b))
    numbers = {}
    return [numbers.setdefault(root(face), len(numbers)) for face in range(num_faces)]


@given(graphs)
def test_labels_are_the_components_numbered_by_first_face(graph):
    num_faces, edges = graph
    labels = connected_labels(np.array(edges, dtype=np.int64).reshape(-1, 2), num_faces)
    assert labels.dtype == np.int64
    assert labels.tolist() == union_find(edges, num_faces)


def test_without_edges_every_face_is_a_cluster():
    assert connected_labels(np.empty((0, 2), dtype=np.int64), 3).tolist() == [0, 1, 2]


def test_noise_gets_minus_one_and_the_rest_are_renumbered():
    labels = np.array([0, 1, 1, 2, 3])
    noise = np.array([True, False, False, True, False])
    assert label_noise(labels, noise).tolist() == [-1, 0, 0, -1, 1]
    assert label_noise(labels, ~np.zeros(5, dtype=bool)).tolist() == [-1] * 5
