import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcde.clustering.density import density, symmetrise

seeds = st.integers(0, 10_000)


def symmetrised(connectivity, indices):
    directed = {
        (face, int(other)): float(c)
        for face, row in enumerate(indices)
        for other, c in zip(row, connectivity[face], strict=True)
    }
    return [
        [(directed[face, int(other)] + directed.get((int(other), face), 0)) / 2 for other in row]
        for face, row in enumerate(indices)
    ]


@given(seeds, st.integers(2, 9), st.data())
def test_symmetrise_averages_both_directions(make_graph, seed, num_faces, data):
    graph, connectivity = make_graph(seed, num_faces, data.draw(st.integers(2, num_faces)))
    result = symmetrise(connectivity, graph.indices)
    assert result.dtype == np.float32
    assert np.array_equal(result, symmetrised(connectivity, graph.indices))


@given(seeds, st.integers(0, 20))
def test_symmetrise_copes_with_duplicate_faces(make_gallery, seed, duplicates):
    indices = make_gallery(seed, duplicates=duplicates).graph.indices
    connectivity = np.random.default_rng(seed).random(indices.shape, dtype=np.float32)
    np.testing.assert_allclose(symmetrise(connectivity, indices), symmetrised(connectivity, indices), rtol=1e-6)


def test_symmetrise_reads_a_reverse_edge_from_column_0():
    indices = np.array([[1, 0], [0, 1]], dtype=np.int32)  # neither face stands in its own column 0
    connectivity = np.array([[0.5, 1], [0.25, 0.75]], dtype=np.float32)
    assert np.array_equal(symmetrise(connectivity, indices), [[0.375, 1], [0.375, 0.75]])


def test_symmetrise_keeps_edges_of_many_faces_apart():
    faces = np.arange(70_000, dtype=np.int32)  # N² is beyond 32 bits
    indices = np.stack([faces, np.roll(faces, -1)], axis=1)
    result = symmetrise(np.ones(indices.shape, dtype=np.float32), indices)
    assert (result == [1, 0.5]).all()


@given(seeds, st.integers(2, 9))
def test_density_sums_all_but_column_0(make_graph, seed, num_faces):
    graph, connectivity = make_graph(seed, num_faces, num_faces)
    expected = [
        sum(float(c) * float(s) for c, s in list(zip(*row, strict=True))[1:])
        for row in zip(connectivity, graph.similarities, strict=True)
    ]
    assert np.array_equal(density(connectivity, graph.similarities), expected)


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_density_does_not_depend_on_block_size(make_graph, monkeypatch, rows):
    graph, connectivity = make_graph(0, 9, 5)
    expected = density(connectivity, graph.similarities)
    monkeypatch.setattr("lcde.data.gallery.ROWS", rows)
    assert np.array_equal(density(connectivity, graph.similarities), expected)


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_symmetrise_does_not_depend_on_block_size(make_graph, monkeypatch, rows):
    graph, connectivity = make_graph(2, 9, 5)
    expected = symmetrised(connectivity, graph.indices)
    monkeypatch.setattr("lcde.data.gallery.ROWS", rows)
    assert np.array_equal(symmetrise(connectivity, graph.indices), expected)
