import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lcde.data.knn
from lcde.data.formats import write_knn
from lcde.data.knn import GraphFiles, build_knn, extend_knn, knn_graph, order_neighbours
from lcde.errors import InputError


def files(folder) -> GraphFiles:
    return GraphFiles(folder, "faiss_k_{k}.npz", "data")


def same(graph, other):
    """Whether two graphs (indices, similarities, …) agree, up to the rounding of 1 - similarity in files."""
    return np.array_equal(graph[0], other[0]) and np.allclose(graph[1], other[1], rtol=0, atol=1e-6)


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_neighbours_are_the_most_similar_faces(make_part, seed, k):
    features = make_part(seed, num_faces=24).features
    indices, similarities = build_knn(features, k)
    expected = features @ features.T
    np.fill_diagonal(expected, 2)  # the face itself comes first
    expected_indices = np.argsort(-expected, axis=1)[:, :k]
    np.fill_diagonal(expected, 1)
    assert (indices.dtype, similarities.dtype) == (np.int32, np.float32)
    assert np.array_equal(indices, expected_indices)
    np.testing.assert_allclose(similarities, np.take_along_axis(expected, expected_indices, axis=1), atol=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_duplicate_faces_keep_themselves_in_column_0(make_part, seed, duplicates):
    part = make_part(seed, duplicates=duplicates)
    assert np.array_equal(part.indices[:, 0], np.arange(len(part)))
    assert all(len(set(row)) == part.k for row in part.indices.tolist())
    assert (np.diff(part.similarities, axis=1) <= 1e-6).all()
    best = -np.sort(-(part.features @ part.features.T), axis=1)[:, : part.k]
    np.testing.assert_allclose(part.similarities, best, atol=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 23), st.integers(2, 12))
def test_a_graph_that_grows_is_that_of_all_faces(make_part, seed, num_known, k):
    features = make_part(seed, num_faces=24).features
    known = build_knn(features[:num_known], min(k, num_known))
    copies = known[0].copy(), known[1].copy()
    grown = extend_knn(features, *known, k)
    assert (grown[0].dtype, grown[1].dtype) == (np.int32, np.float32)
    assert same(grown, build_knn(features, k))
    assert same(known, copies)


def test_duplicates_that_come_later_stand_behind_the_face_itself(make_part):
    features = make_part(0, num_faces=24, duplicates=20).features
    indices, similarities = extend_knn(features, *build_knn(features[:6], 5), 5)
    assert np.array_equal(indices[:, 0], np.arange(24))
    assert all(len(set(row)) == 5 for row in indices.tolist())
    np.testing.assert_allclose(similarities, build_knn(features, 5)[1], atol=1e-6)


def test_block_size_does_not_change_the_graph(make_part, monkeypatch):
    part = make_part(0)
    monkeypatch.setattr(lcde.data.knn, "BLOCK", 7)
    assert same(build_knn(part.features, part.k), (part.indices, part.similarities))


@pytest.mark.parametrize(
    ("indices", "similarities", "expected"),
    [
        ([0, 1, 2], [1, 0.5, 0.25], ([0, 1, 2], [1, 0.5, 0.25])),
        ([2, 0, 1], [0.25, 1, 0.5], ([0, 1, 2], [1, 0.5, 0.25])),  # shuffled columns
        ([2, 1, 0], [1, 1, 1], ([0, 2, 1], [1, 1, 1])),  # duplicates in front of the face
        ([2, 1, 0], [1, 0.5, 0.75], ([0, 2, 1], [0.75, 1, 0.5])),  # rounding put another face above it
        ([1, 2, 3], [0.5, 1, 0.75], ([0, 2, 3], [1, 1, 0.75])),  # duplicates pushed it out
    ],
)
def test_rows_are_sorted_behind_the_face_itself(indices, similarities, expected):
    others = np.array([[1, 0, 2], [2, 1, 0], [3, 2, 1]], dtype=np.int32)
    own = np.array([[1, 0.5, 0.25]] * 3, dtype=np.float32)
    ordered = order_neighbours(
        np.vstack([np.array(indices, dtype=np.int32), others]),
        np.vstack([np.array(similarities, dtype=np.float32), own]),
    )
    assert (ordered[0][0].tolist(), ordered[1][0].tolist()) == expected
    assert np.array_equal(ordered[0][1:], others)
    assert np.array_equal(ordered[1][1:], own)


def test_equally_similar_faces_keep_their_order():
    faces = np.random.default_rng(0).permutation(100).astype(np.int32)
    near = faces % 3 == 0
    ordered, _ = order_neighbours(faces[None], np.where(near, np.float32(1), np.float32(0.5))[None])
    assert ordered[0].tolist() == [0, *faces[near & (faces != 0)], *faces[~near]]


@given(st.integers(0, 10_000))
def test_order_of_columns_does_not_matter(make_part, seed):
    part = make_part(seed)
    order = np.random.default_rng(seed).random(part.indices.shape).argsort(axis=1)
    shuffled = [np.take_along_axis(array, order, axis=1) for array in (part.indices, part.similarities)]
    copies = [array.copy() for array in shuffled]
    assert same(order_neighbours(*shuffled), (part.indices, part.similarities))
    assert all(map(np.array_equal, shuffled, copies))


def test_graph_is_built_once_and_kept(make_part, tmp_path):
    part = make_part(0)
    built = knn_graph(part.features, part.k, files(tmp_path / "knns"), "part")
    [path] = (tmp_path / "knns").iterdir()
    written = path.stat().st_mtime_ns
    read = knn_graph(part.features, part.k, files(tmp_path / "knns"), "part")
    assert path.name == f"faiss_k_{part.k}.npz"
    assert same(built, (part.indices, part.similarities))
    assert same(read, built)
    assert built[2] > 0
    assert read[2] == 0
    assert [other.stat().st_mtime_ns for other in path.parent.iterdir()] == [written]


def test_graph_k_builds_one_graph_for_all_smaller_k(make_part, tmp_path):
    features = make_part(0).features
    first = knn_graph(features, 4, files(tmp_path), "part", graph_k=9)
    others = [knn_graph(features, k, files(tmp_path), "part", graph_k=9) for k in (4, 6, 9)]
    assert [path.name for path in tmp_path.iterdir()] == ["faiss_k_9.npz"]
    assert same(first, others[0])
    for k, graph in zip((4, 6, 9), others, strict=True):
        assert same(graph, build_knn(features, k))


def test_graph_k_stays_below_the_number_of_faces(make_part, tmp_path):
    part = make_part(0)
    graph = knn_graph(part.features, 4, files(tmp_path), "part", graph_k=10 * len(part))
    assert [path.name for path in tmp_path.iterdir()] == [f"faiss_k_{len(part) - 1}.npz"]
    assert same(graph, build_knn(part.features, 4))


def test_jobs_that_need_one_graph_build_it_once(make_part, tmp_path, monkeypatch):
    built = []

    def slow_build(*arguments):
        built.append(arguments)
        time.sleep(0.2)
        return build_knn(*arguments)

    monkeypatch.setattr(lcde.data.knn, "build_knn", slow_build)
    features = make_part(0).features
    with ThreadPoolExecutor(4) as pool:
        graphs = list(pool.map(lambda k: knn_graph(features, k, files(tmp_path), "part", 9), (4, 6, 9, 9)))
    assert len(built) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["faiss_k_9.npz"]
    assert all(same(graph, build_knn(features, k)) for graph, k in zip(graphs, (4, 6, 9, 9), strict=True))


@pytest.mark.parametrize("duplicates", [0, 15])
def test_larger_graph_serves_a_smaller_k(make_part, tmp_path, duplicates):
    features = make_part(0, duplicates=duplicates).features
    knn_graph(features, 9, files(tmp_path), "part")
    indices, similarities, _ = knn_graph(features, 5, files(tmp_path), "part")
    np.testing.assert_allclose(similarities, build_knn(features, 5)[1], atol=1e-6)
    assert np.array_equal(indices[:, 0], np.arange(len(features)))
    assert indices.flags.c_contiguous
    assert len(list(tmp_path.iterdir())) == 1


def test_smallest_sufficient_graph_serves(make_part, tmp_path):
    part = make_part(0)
    write_knn(tmp_path / "faiss_k_6.npz", part.indices, part.similarities, "", "data")
    for k in (5, 9):
        (tmp_path / f"faiss_k_{k}.npz").write_bytes(b"never opened")
    assert same(knn_graph(part.features, 6, files(tmp_path), "part"), (part.indices, part.similarities))


def test_smaller_graph_does_not_serve_a_larger_k(make_part, tmp_path):
    features = make_part(0).features
    knn_graph(features, 5, files(tmp_path), "part")
    assert same(knn_graph(features, 9, files(tmp_path), "part"), build_knn(features, 9))
    assert {path.name for path in tmp_path.iterdir()} == {"faiss_k_5.npz", "faiss_k_9.npz"}


def test_graph_of_another_program_is_put_in_order(make_part, tmp_path):
    part = make_part(0)
    write_knn(tmp_path / "faiss_k_6.npz", part.indices[:, ::-1], part.similarities[:, ::-1], "", "data")
    assert same(knn_graph(part.features, 6, files(tmp_path), "part"), (part.indices, part.similarities))


def refused(path, *values):
    return pytest.raises(InputError, match=".*".join(re.escape(str(value)) for value in (path, *values)))


def test_graph_of_other_features_is_refused(make_part, tmp_path):
    part, other = make_part(0), make_part(1)
    knn_graph(part.features, part.k, files(tmp_path), "part")
    with refused(tmp_path / "faiss_k_6.npz", "other features"):
        knn_graph(other.features, part.k, files(tmp_path), "part")


def changed(part, **cells):
    indices, similarities = part.indices.copy(), part.similarities.copy()
    for array, value in ((indices, cells.get("index")), (similarities, cells.get("similarity"))):
        if value is not None:
            array[3, 2] = value
    return indices, similarities


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        ({"index": 40}, ["neighbour 40", "40 faces"]),
        ({"index": -1}, ["neighbour -1", "40 faces"]),
        ({"similarity": 0.1}, ["similarities", "off"]),
        ({"similarity": np.nan}, ["similarities"]),
    ],
)
def test_graph_that_does_not_fit_is_refused(make_part, tmp_path, cells, values):
    part = make_part(0)
    write_knn(tmp_path / "faiss_k_6.npz", *changed(part, **cells), "", "data")
    with refused(tmp_path / "faiss_k_6.npz", *values):
        knn_graph(part.features, part.k, files(tmp_path), "part")


def test_graph_of_another_number_of_faces_is_refused(make_part, tmp_path):
    part = make_part(0)
    write_knn(tmp_path / "faiss_k_6.npz", part.indices[:30], part.similarities[:30], "", "data")
    with refused(tmp_path / "faiss_k_6.npz", "30 rows", "40 faces"):
        knn_graph(part.features, part.k, files(tmp_path), "part")


def test_graph_with_fewer_columns_than_its_name_says_is_refused(make_part, tmp_path):
    part = make_part(0)
    write_knn(tmp_path / "faiss_k_9.npz", part.indices, part.similarities, "", "data")
    with refused(tmp_path / "faiss_k_9.npz", 6):
        knn_graph(part.features, 8, files(tmp_path), "part")


@pytest.mark.parametrize("k", [40, 400, 1])
def test_k_must_lie_between_2_and_the_faces(make_part, tmp_path, k):
    with refused(f"dataset.k={k}", "2 and 39", "40 faces of part1_test"):
        knn_graph(make_part(0).features, k, files(tmp_path), "part1_test")
    assert not list(tmp_path.iterdir())


def test_graph_that_names_a_neighbour_twice_is_refused(make_part, tmp_path):
    part = make_part(0)
    indices, similarities = part.indices.copy(), part.similarities.copy()
    indices[0, 2], similarities[0, 2] = indices[0, 1], similarities[0, 1]
    write_knn(tmp_path / "faiss_k_6.npz", indices, similarities, "", "data")
    with pytest.raises(InputError, match=r"faiss_k_6\.npz has rows that name one neighbour twice"):
        knn_graph(part.features, part.k, files(tmp_path), "part")
