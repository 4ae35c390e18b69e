import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lcde.clustering.opinions
from lcde.clustering.opinions import GROUP, edges_between, second_opinions


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(1, 5), rows=st.integers(1, 40))
def test_edges_between_are_the_strongest_of_each_pair_of_clusters(make_graph, seed, number, rows):
    indices, similarities, connectivity = make_graph(seed, num_faces=30, k=6)
    rng = np.random.default_rng(seed)
    similarities += rng.random(similarities.shape, dtype=np.float32) / 100  # without ties
    labels = rng.integers(0, 5, size=30)
    faces = rng.integers(0, 30, size=8)
    edges = np.stack([faces, indices[faces, rng.integers(1, 6, size=8)]], axis=1)
    edges = edges[np.not_equal(*labels[edges].T)]
    if not len(edges):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lcde.clustering.opinions, "ROWS", rows)
        graph = indices, similarities, connectivity
        found, of_pair, pair = edges_between(labels[edges], labels, graph, number)

    assert found.dtype == np.int64
    for position, clusters in zip(pair, np.sort(labels[edges], axis=1).tolist(), strict=True):
        weights = {}
        for face in range(30):
            for column in range(1, 6):
                other = indices[face, column]
                if sorted(labels[[face, other]].tolist()) == clusters:
                    weight = similarities[face, column] * connectivity[face, column]
                    weights.setdefault(frozenset((face, int(other))), weight)
        expected = sorted(weights.values(), reverse=True)[:number]
        ours = [weights[frozenset(edge)] for edge in found[of_pair == position].tolist()]
        assert ours == expected


@pytest.mark.parametrize(("size", "others", "expected"), [(GROUP, 0.2, 0.3), (GROUP - 1, 0.2, 0.7), (GROUP, 0.9, 0.86)])
def test_groups_join_by_the_mean_of_several_edges(size, others, expected):
    labels = np.repeat([0, 1], size)
    num_faces = len(labels)
    indices = np.array([np.roll(np.arange(num_faces), -face) for face in range(num_faces)], dtype=np.int32)
    similarities = np.full(indices.shape, 0.5, dtype=np.float32)
    asked = []

    def ask(edges):
        asked.extend(edges.tolist())
        return np.full(len(edges), others, dtype=np.float32)

    edges = np.array([[0, size], [1, size + 1]])
    probability = np.array([0.7, 0.4], dtype=np.float32)
    graph = indices, similarities, np.ones_like(similarities)
    result = second_opinions(edges, probability, labels, graph, 4, 0.5, ask)
    assert result == pytest.approx([expected, 0.4])
    assert probability.tolist() == pytest.approx([0.7, 0.4])
    assert len(asked) == (4 if size == GROUP else 0)
