import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import official_similarity_threshold, peak_links, select_edges
from lcde.data.gallery import KNNGraph


def selected(graph, connectivity, densities, threshold):
    """E_d and E_s face by face; as in the published program, only a neighbour of s·c > 0 can be the densest one."""
    edges_density, edges_similar = [], set()
    for face, row in enumerate(graph.indices.tolist()):
        weights = [float(s) * float(c) for s, c in zip(graph.similarities[face], connectivity[face], strict=True)]
        denser = [column for column in range(1, len(row)) if densities[row[column]] > densities[face]]
        best = None
        for column in denser:
            if weights[column] > (0 if best is None else weights[best]):
                best = column
        if best is not None:
            edges_density.append([face, row[best]])
        for column in denser:
            if column != best and weights[column] >= threshold:
                edges_similar.add((min(face, row[column]), max(face, row[column])))
    return edges_density, [list(edge) for edge in sorted(edges_similar)]


def as_set(edges):
    return {frozenset(edge) for edge in edges.tolist()}


thresholds = st.sampled_from([-0.25, 0.0, 0.125, 0.25, 0.5, 2.0])


@given(st.integers(0, 10_000), st.integers(2, 9), thresholds)
def test_edges_follow_the_definition(make_graph, seed, num_faces, threshold):
    graph, directed = make_graph(seed, num_faces, max(2, num_faces - seed % 3))
    connectivity = symmetrise(directed, graph.indices)
    densities = density(connectivity, graph.similarities)
    edges = select_edges(graph, connectivity, densities, threshold)
    expected = selected(graph, connectivity, densities, threshold)
    assert (edges[0].tolist(), edges[1].tolist()) == expected
    assert all(array.dtype == np.int64 and array.ndim == 2 for array in edges)


@given(st.integers(0, 10_000), st.integers(0, 20), st.floats(-1, 1))
def test_edges_of_real_graphs_are_unique_and_disjoint(make_gallery, seed, duplicates, threshold):
    graph = make_gallery(seed, duplicates=duplicates).graph
    connectivity = symmetrise(np.random.default_rng(seed).random(graph.indices.shape, dtype=np.float32), graph.indices)
    arguments = graph, connectivity, density(connectivity, graph.similarities), threshold
    edges_density, edges_similar = select_edges(*arguments)
    assert (edges_density.tolist(), edges_similar.tolist()) == selected(*arguments)
    assert len(as_set(edges_similar)) == len(edges_similar)
    assert not as_set(edges_density) & as_set(edges_similar)


def test_of_equally_good_neighbours_the_first_wins():
    indices = np.array([[0, 2, 1], [1, 0, 2], [2, 0, 1]], dtype=np.int32)
    graph = KNNGraph(indices, np.array([[1, 0.5, 0.25]] * 3, dtype=np.float32))
    connectivity = np.array([[1, 0.5, 1]] * 3, dtype=np.float32)
    edges_density, edges_similar = select_edges(graph, connectivity, np.array([1, 2, 2]), 0.25)
    assert edges_density.tolist() == [[0, 2]]
    assert edges_similar.tolist() == [[0, 1]]


def test_equally_dense_faces_have_no_edges(make_graph):
    edges = select_edges(*make_graph(0, 6, 4), np.ones(6), -1.0)
    assert [array.shape for array in edges] == [(0, 2), (0, 2)]


def test_zero_connectivity_gives_no_density_edge(make_graph):
    graph, connectivity = make_graph(0, 6, 4)
    edges_density, _ = select_edges(graph, np.zeros_like(connectivity), np.arange(6), 0.5)
    assert edges_density.shape == (0, 2)


@pytest.mark.parametrize("rows", [1, 4, 12])
def test_edges_do_not_depend_on_block_size(make_graph, monkeypatch, rows):
    graph, connectivity = make_graph(1, 12, 6)
    arguments = graph, connectivity, density(connectivity, graph.similarities), 0.125
    expected = select_edges(*arguments)
    monkeypatch.setattr("lcde.data.gallery.ROWS", rows)
    assert all(map(np.array_equal, select_edges(*arguments), expected))


def test_official_threshold_is_the_mean_of_three_neighbours():
    similarities = np.array([[1, 0.5, 0.25, 0.25, -1], [1, 1, 0.75, 0.25, -1]], dtype=np.float32)
    assert official_similarity_threshold(similarities) == 0.5
    assert official_similarity_threshold(similarities[:, :2]) == 0.75


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_a_peak_link_leads_to_the_first_higher_neighbour(make_graph, seed, num_faces):
    graph, _ = make_graph(seed, num_faces, max(2, num_faces - seed % 3))
    height = np.random.default_rng(seed).integers(4, size=num_faces)  # with ties, which are not higher
    links = peak_links(graph, height)
    for face, row in enumerate(graph.indices.tolist()):
        column = next((column for column, other in enumerate(row) if height[other] > height[face]), None)
        assert links.indices[face].tolist() == [face, face if column is None else row[column]]
        assert links.similarities[face].tolist() == [1, 0 if column is None else graph.similarities[face, column]]
