import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcde.clustering import opinions
from lcde.clustering.components import connected_labels
from lcde.clustering.opinions import GROUP, edges_between, second_opinions


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(1, 5), rows=st.integers(1, 40))
def test_edges_between_are_the_strongest_of_each_pair_of_clusters(make_graph, seed, number, rows):
    indices, similarities, connectivity = make_graph(seed, num_faces=30, k=6)
    rng = np.random.default_rng(seed)
    similarities += rng.random(similarities.shape, dtype=np.float32) / 100  # without ties
    labels = rng.integers(0, 5, size=30)
    faces = rng.integers(0, 30, size=8)
    ends = np.sort(labels[np.stack([faces, indices[faces, rng.integers(1, 6, size=8)]], axis=1)], axis=1)
    pairs = np.unique(ends[ends[:, 0] < ends[:, 1]], axis=0)
    if not len(pairs):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opinions, "ROWS", rows)
        found, of_pair, mean = edges_between(pairs, labels, (indices, similarities, connectivity), number)

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


def crowds(*sizes, strength=0.9, between=0.1):
    """A graph in which all faces are neighbours, of ``strength`` within crowds of ``sizes`` and ``between`` them."""
    crowd = np.repeat(np.arange(len(sizes)), sizes)
    indices = np.array([np.roll(np.arange(len(crowd)), -face) for face in range(len(crowd))], dtype=np.int32)
    connectivity = np.where(crowd[indices] == crowd[:, None], strength, between).astype(np.float32)
    return crowd, (indices, np.full_like(connectivity, 0.5), connectivity)


def part(graph, answer, num_faces, joined=None, number=3):
    """Labels of one cluster of all faces after second opinions, and how many edges were asked about."""
    asked = []

    def ask(edges):
        asked.extend(edges.tolist())
        return np.full(len(edges), answer, dtype=np.float32)

    chain = np.stack([np.arange(num_faces - 1), np.arange(1, num_faces)], axis=1) if joined is None else joined
    labels = second_opinions(np.zeros(num_faces, dtype=np.int64), chain, graph, number, 0.5, ask)
    return labels.tolist(), len(asked)


@pytest.mark.parametrize("answer", [0.2, 0.5, 0.7])
def test_crowds_stay_together_by_the_mean_of_several_edges(answer):
    crowd, graph = crowds(8, 6)
    assert part(graph, answer, 14) == ([0] * 14 if answer > 0.5 else crowd.tolist(), 3)


@pytest.mark.parametrize(("sizes", "bridges"), [((4, 5), 1), ((5, 6), 2), ((8, 9), 5), ((20, 21), 17)])
def test_crowds_of_nearly_one_size_are_told_from_one_crowd(sizes, bridges):
    crowd, (indices, similarities, connectivity) = crowds(*sizes)
    for face in range(bridges):
        for first, second in ((face, sizes[0] + face), (sizes[0] + face, face)):
            connectivity[first, indices[first] == second] = 0.9
    assert part((indices, similarities, connectivity), 0.0, sum(sizes))[0] == crowd.tolist()


def test_a_cluster_too_large_for_a_person_is_left(monkeypatch):
    crowd, graph = crowds(8, 6)
    monkeypatch.setattr(opinions, "FACES", 13)
    assert part(graph, 0.0, 14) == ([0] * 14, 0)
    monkeypatch.setattr(opinions, "FACES", 14)
    assert part(graph, 0.0, 14) == (crowd.tolist(), 3)


def test_a_few_faces_stay_with_the_crowds_that_they_are_joined_to_unasked():
    _, graph = crowds(8, GROUP - 1, 8)
    assert part(graph, 0.0, 16 + GROUP - 1) == ([0] * (16 + GROUP - 1), 0)


def test_crowds_that_lcenet_sees_as_one_stay_together_unasked():
    crowd, graph = crowds(8, 8)
    graph[2][crowd[graph[0]] != crowd[:, None]] = 0.51
    assert part(graph, 0.0, 16) == ([0] * 16, 0)


@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_only_crowds_that_an_edge_joined_are_asked_about(answer):
    """The third crowd holds the two others together."""
    crowd, graph = crowds(6, 6, 6)
    stars = np.stack([np.arange(18), 6 * crowd], axis=1)
    labels, asked = part(graph, answer, 18, np.concatenate([stars, [[0, 12], [6, 12]]]))
    assert labels == ([0] * 18 if answer else crowd.tolist())
    assert asked == 2 * 3


@pytest.mark.parametrize("faces", [16, 17, 30, 40, 100])
def test_communities_are_sought_some_clusters_at_a_time(faces, monkeypatch):
    monkeypatch.setattr(opinions, "FACES", faces)
    crowd, graph = crowds(8, 6, 3, 10, 4, 9, 7)
    order = np.random.default_rng(0).permutation(len(crowd))
    graph = np.argsort(order).astype(np.int32)[graph[0][order]], graph[1], graph[2][order]
    labels = np.array([0, 0, 1, 2, 2, 3, 3])[crowd[order]]
    chain = np.argsort(labels, kind="stable")
    joined = np.stack([chain[:-1], chain[1:]], axis=1)
    joined = joined[np.equal(*labels[joined].T)]
    parted = second_opinions(labels, joined, graph, 4, 0.5, lambda edges: np.zeros(len(edges)))
    assert len(np.unique(np.stack([parted, crowd[order]]), axis=1).T) == parted.max() + 1 == 7
    whole = second_opinions(labels, joined, graph, 4, 0.5, lambda edges: np.ones(len(edges)))
    assert len(np.unique(np.stack([whole, labels]), axis=1).T) == whole.max() + 1 == 4


@pytest.mark.parametrize("answer", [0.0, 1.0])
@given(seed=st.integers(0, 2**32 - 1), faces=st.integers(1, 60))
def test_clusters_part_or_stay_and_never_join(make_graph, answer, seed, faces):
    indices, similarities, connectivity = make_graph(seed, num_faces=60, k=6)
    rows, columns = np.nonzero(connectivity[:, 1:] > 0.8)
    joined = np.stack([rows, indices[rows, columns + 1]], axis=1).astype(np.int64)
    labels = connected_labels(joined, 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opinions, "FACES", faces)
        graph = indices, similarities, connectivity
        result = second_opinions(labels, joined, graph, 4, 0.5, lambda edges: np.full(len(edges), answer))
    assert result.dtype == np.int64
    assert len(np.unique(np.stack([labels, result]), axis=1).T) == result.max() + 1, "no cluster of two"
    if answer:
        assert np.array_equal(result, labels)
