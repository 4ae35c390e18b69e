import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcde.clustering import splitting
from lcde.clustering.components import connected_labels
from lcde.clustering.splitting import SMALL, WeightedGraph, edges_between, split_weak_clusters
from lcde.data.gallery import KNNGraph


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(1, 5), rows=st.integers(1, 40))
def test_edges_between_are_the_strongest_of_each_pair_of_clusters(make_graph, seed, number, rows):
    knn, connectivity = make_graph(seed, num_faces=30, k=6)
    indices, similarities = knn.indices, knn.similarities
    rng = np.random.default_rng(seed)
    similarities += rng.random(similarities.shape, dtype=np.float32) / 100  # without ties
    labels = rng.integers(0, 5, size=30)
    faces = rng.integers(0, 30, size=8)
    ends = np.sort(labels[np.stack([faces, indices[faces, rng.integers(1, 6, size=8)]], axis=1)], axis=1)
    pairs = np.unique(ends[ends[:, 0] < ends[:, 1]], axis=0)
    if not len(pairs):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lcde.data.gallery.ROWS", rows)
        found, of_pair, mean = edges_between(pairs, labels, WeightedGraph(knn, connectivity), number)

    assert found.dtype == np.int64
    for position, clusters in enumerate(pairs.tolist()):
        weights, strengths = {}, {}
        for face in range(30):
            for column in range(1, 6):
                other = indices[face, column]
                if sorted(labels[[face, other]].tolist()) == clusters:
                    edge = frozenset((face, int(other)))
                    strengths.setdefault(edge, connectivity[face, column])
                    weights.setdefault(edge, similarities[face, column] * connectivity[face, column])
        ours = [weights[frozenset(edge)] for edge in found[of_pair == position].tolist()]
        assert ours == sorted(weights.values(), reverse=True)[:number]
        assert mean[position] == pytest.approx(np.mean(list(strengths.values())))


def groups(*sizes, strength=0.9, between=0.1):
    """A graph in which all faces are neighbours, of ``strength`` within groups of ``sizes`` and ``between`` them."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    indices = np.array([np.roll(np.arange(len(group)), -face) for face in range(len(group))], dtype=np.int32)
    connectivity = np.where(group[indices] == group[:, None], strength, between).astype(np.float32)
    return group, WeightedGraph(KNNGraph(indices, np.full_like(connectivity, 0.5)), connectivity)


def split_one(graph, answer, num_faces, joined=None, number=3):
    """Labels of one cluster of all faces after splitting, and how many edges were asked about."""
    asked = []

    def ask(edges):
        asked.extend(edges.tolist())
        return np.full(len(edges), answer, dtype=np.float32)

    chain = np.stack([np.arange(num_faces - 1), np.arange(1, num_faces)], axis=1) if joined is None else joined
    labels = split_weak_clusters(np.zeros(num_faces, dtype=np.int64), chain, graph, number, 0.5, ask)
    return labels.tolist(), len(asked)


@pytest.mark.parametrize("answer", [0.2, 0.5, 0.7])
def test_groups_stay_together_by_the_mean_of_several_edges(answer):
    group, graph = groups(8, 6)
    assert split_one(graph, answer, 14) == ([0] * 14 if answer > 0.5 else group.tolist(), 3)


@pytest.mark.parametrize(("sizes", "bridges"), [((4, 5), 1), ((5, 6), 2), ((8, 9), 5), ((20, 21), 17)])
def test_groups_of_nearly_one_size_are_recognised(sizes, bridges):
    group, graph = groups(*sizes)
    indices, connectivity = graph.knn.indices, graph.connectivity
    for face in range(bridges):
        for first, second in ((face, sizes[0] + face), (sizes[0] + face, face)):
            connectivity[first, indices[first] == second] = 0.9
    assert split_one(graph, 0.0, sum(sizes))[0] == group.tolist()


def test_a_cluster_too_large_for_one_identity_stays(monkeypatch):
    group, graph = groups(8, 6)
    monkeypatch.setattr(splitting, "FACES", 13)
    assert split_one(graph, 0.0, 14) == ([0] * 14, 0)
    monkeypatch.setattr(splitting, "FACES", 14)
    assert split_one(graph, 0.0, 14) == (group.tolist(), 3)


def test_a_few_faces_stay_with_the_groups_that_they_are_linked_to_unasked():
    _, graph = groups(8, SMALL - 1, 8)
    assert split_one(graph, 0.0, 16 + SMALL - 1) == ([0] * (16 + SMALL - 1), 0)


def test_groups_of_high_mean_connectivity_stay_together_unasked():
    group, graph = groups(8, 8)
    graph.connectivity[group[graph.knn.indices] != group[:, None]] = 0.51
    assert split_one(graph, 0.0, 16) == ([0] * 16, 0)


@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_only_groups_that_an_edge_joined_are_asked_about(answer):
    """The third group links the two others."""
    group, graph = groups(6, 6, 6)
    stars = np.stack([np.arange(18), 6 * group], axis=1)
    labels, asked = split_one(graph, answer, 18, np.concatenate([stars, [[0, 12], [6, 12]]]))
    assert labels == ([0] * 18 if answer else group.tolist())
    assert asked == 2 * 3


@pytest.mark.parametrize("faces", [16, 17, 30, 40, 100])
def test_communities_are_sought_some_clusters_at_a_time(faces, monkeypatch):
    monkeypatch.setattr(splitting, "FACES", faces)
    group, graph = groups(8, 6, 3, 10, 4, 9, 7)
    order = np.random.default_rng(0).permutation(len(group))
    indices = np.argsort(order).astype(np.int32)[graph.knn.indices[order]]
    graph = WeightedGraph(KNNGraph(indices, graph.knn.similarities), graph.connectivity[order])
    labels = np.array([0, 0, 1, 2, 2, 3, 3])[group[order]]
    chain = np.argsort(labels, kind="stable")
    joined = np.stack([chain[:-1], chain[1:]], axis=1)
    joined = joined[np.equal(*labels[joined].T)]
    split = split_weak_clusters(labels, joined, graph, 4, 0.5, lambda edges: np.zeros(len(edges)))
    assert len(np.unique(np.stack([split, group[order]]), axis=1).T) == split.max() + 1 == 7
    whole = split_weak_clusters(labels, joined, graph, 4, 0.5, lambda edges: np.ones(len(edges)))
    assert len(np.unique(np.stack([whole, labels]), axis=1).T) == whole.max() + 1 == 4


@pytest.mark.parametrize("answer", [0.0, 1.0])
@given(seed=st.integers(0, 2**32 - 1), faces=st.integers(1, 60))
def test_clusters_split_or_stay_and_never_join(make_graph, answer, seed, faces):
    knn, connectivity = make_graph(seed, num_faces=60, k=6)
    rows, columns = np.nonzero(connectivity[:, 1:] > 0.8)
    joined = np.stack([rows, knn.indices[rows, columns + 1]], axis=1).astype(np.int64)
    labels = connected_labels(joined, 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "FACES", faces)
        graph = WeightedGraph(knn, connectivity)
        result = split_weak_clusters(labels, joined, graph, 4, 0.5, lambda edges: np.full(len(edges), answer))
    assert result.dtype == np.int64
    assert len(np.unique(np.stack([labels, result]), axis=1).T) == result.max() + 1, "no cluster of two"
    if answer:
        assert np.array_equal(result, labels)
