import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lcde.data.knn
from lcde.data.formats import normalise, write_knn
from lcde.data.gallery import KNNGraph
from lcde.data.knn import (
    GraphFiles,
    build_knn,
    extend_knn,
    knn_graph,
    order_neighbours,
    own_graph,
)
from lcde.data.search import choose_search, edge_similarities, recall
from lcde.errors import InputError
from lcde.files import write_atomically


def files(folder) -> GraphFiles:
    return GraphFiles(folder, "faiss_k_{k}.npz", "data")


def same(graph, other):
    """Whether two graphs agree, up to the rounding of 1 - similarity in files."""
    return np.array_equal(graph.indices, other.indices) and np.allclose(
        graph.similarities, other.similarities, rtol=0, atol=1e-6
    )


def columns(graph, choice):
    return KNNGraph(graph.indices[:, choice], graph.similarities[:, choice])


def copy_of(graph):
    return KNNGraph(graph.indices.copy(), graph.similarities.copy())


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_neighbours_are_the_most_similar_faces(make_gallery, seed, k):
    features = make_gallery(seed, num_faces=24).features
    graph = build_knn(features, k)
    expected = features @ features.T
    np.fill_diagonal(expected, 2)  # the face itself comes first
    expected_indices = np.argsort(-expected, axis=1)[:, :k]
    np.fill_diagonal(expected, 1)
    assert (graph.indices.dtype, graph.similarities.dtype) == (np.int32, np.float32)
    assert same(graph, KNNGraph(expected_indices, np.take_along_axis(expected, expected_indices, axis=1)))


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_duplicate_faces_keep_themselves_in_column_0(make_gallery, seed, duplicates):
    gallery = make_gallery(seed, duplicates=duplicates)
    graph = gallery.graph
    assert np.array_equal(graph.indices[:, 0], np.arange(len(gallery)))
    assert all(len(set(row)) == graph.k for row in graph.indices.tolist())
    assert (np.diff(graph.similarities, axis=1) <= 1e-6).all()
    best = -np.sort(-(gallery.features @ gallery.features.T), axis=1)[:, : graph.k]
    np.testing.assert_allclose(graph.similarities, best, atol=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 23), st.integers(2, 12))
def test_a_graph_that_grows_is_that_of_all_faces(make_gallery, seed, num_known, k):
    features = make_gallery(seed, num_faces=24).features
    known = build_knn(features[:num_known], min(k, num_known))
    copy = copy_of(known)
    grown = extend_knn(features, known, k)
    assert (grown.indices.dtype, grown.similarities.dtype) == (np.int32, np.float32)
    assert same(grown, build_knn(features, k))
    assert same(known, copy)


def test_neighbours_of_half_precision_embeddings_keep_their_order(make_gallery):
    features = make_gallery(0, num_faces=200, feature_dim=64).features
    found = build_knn(normalise(features.astype(np.float16).astype(np.float32), "faces"), 20)
    exact = np.take_along_axis(features @ features.T, found.indices, axis=1)
    assert np.diff(exact, axis=1).max() < 1e-3  # descending but for ties of float16
    assert recall(found.indices, build_knn(features, 20).indices) > 0.98


def test_duplicates_that_come_later_stand_behind_the_face_itself(make_gallery):
    features = make_gallery(0, num_faces=24, duplicates=20).features
    graph = extend_knn(features, build_knn(features[:6], 5), 5)
    assert np.array_equal(graph.indices[:, 0], np.arange(24))
    assert all(len(set(row)) == 5 for row in graph.indices.tolist())
    np.testing.assert_allclose(graph.similarities, build_knn(features, 5).similarities, atol=1e-6)


def test_block_size_does_not_change_the_graph(make_gallery, monkeypatch):
    gallery = make_gallery(0)
    monkeypatch.setattr(lcde.data.knn, "SEARCHED_ROWS", 7)
    assert same(build_knn(gallery.features, gallery.graph.k), gallery.graph)


def test_similarities_of_edges_are_those_of_their_faces(make_gallery, monkeypatch):
    gallery = make_gallery(0)
    monkeypatch.setattr("lcde.data.search.GATHERED_ROWS", 7)
    found = edge_similarities(gallery.features, gallery.graph.indices)
    np.testing.assert_allclose(found, gallery.graph.similarities, atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("indices", "similarities", "expected"),
    [
        ([0, 1, 2], [1, 0.5, 0.25], ([0, 1, 2], [1, 0.5, 0.25])),
        ([2, 0, 1], [0.25, 1, 0.5], ([0, 1, 2], [1, 0.5, 0.25])),  # shuffled columns
        ([2, 1, 0], [1, 1, 1], ([0, 2, 1], [1, 1, 1])),  # duplicates in front of the face
        ([2, 1, 0], [1, 0.5, 0.75], ([0, 2, 1], [0.75, 1, 0.5])),  # rounding put another face above it
        ([1, 2, 3], [0.5, 1, 0.75], ([0, 2, 3], [1, 1, 0.75])),  # duplicates displaced it
    ],
)
def test_rows_are_sorted_behind_the_face_itself(indices, similarities, expected):
    others = np.array([[1, 0, 2], [2, 1, 0], [3, 2, 1]], dtype=np.int32)
    own = np.array([[1, 0.5, 0.25]] * 3, dtype=np.float32)
    ordered = order_neighbours(
        KNNGraph(
            np.vstack([np.array(indices, dtype=np.int32), others]),
            np.vstack([np.array(similarities, dtype=np.float32), own]),
        )
    )
    assert (ordered.indices[0].tolist(), ordered.similarities[0].tolist()) == expected
    assert np.array_equal(ordered.indices[1:], others)
    assert np.array_equal(ordered.similarities[1:], own)


def test_equally_similar_faces_keep_their_order():
    faces = np.random.default_rng(0).permutation(100).astype(np.int32)
    near = faces % 3 == 0
    ordered = order_neighbours(KNNGraph(faces[None], np.where(near, np.float32(1), np.float32(0.5))[None]))
    assert ordered.indices[0].tolist() == [0, *faces[near & (faces != 0)], *faces[~near]]


@given(st.integers(0, 10_000))
def test_order_of_columns_does_not_matter(make_gallery, seed):
    graph = make_gallery(seed).graph
    order = np.random.default_rng(seed).random(graph.indices.shape).argsort(axis=1)
    shuffled = KNNGraph(*(np.take_along_axis(a, order, axis=1) for a in (graph.indices, graph.similarities)))
    copy = copy_of(shuffled)
    assert same(order_neighbours(shuffled), graph)
    assert same(shuffled, copy)


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_chunk_size_does_not_change_the_order(make_gallery, monkeypatch, rows):
    shuffled = columns(make_gallery(6, duplicates=9).graph, slice(None, None, -1))
    expected = order_neighbours(shuffled)
    monkeypatch.setattr("lcde.data.gallery.ROWS", rows)
    assert same(order_neighbours(shuffled), expected)


def test_graph_is_built_once_and_kept(make_gallery, tmp_path):
    gallery = make_gallery(0)
    built, seconds = knn_graph(gallery.features, 6, files(tmp_path / "knns"), "part")
    [path] = (tmp_path / "knns").iterdir()
    written = path.stat().st_mtime_ns
    read, none = knn_graph(gallery.features, 6, files(tmp_path / "knns"), "part")
    assert path.name == "faiss_k_6.npz"
    assert same(built, gallery.graph)
    assert same(read, built)
    assert seconds > 0
    assert none == 0
    assert [other.stat().st_mtime_ns for other in path.parent.iterdir()] == [written]


def test_graph_k_builds_one_graph_for_all_smaller_k(make_gallery, tmp_path):
    features = make_gallery(0).features
    for k in (4, 6, 9):
        assert same(knn_graph(features, k, files(tmp_path), "part", graph_k=9)[0], build_knn(features, k))
    assert [path.name for path in tmp_path.iterdir()] == ["faiss_k_9.npz"]


def test_graph_k_stays_below_the_number_of_faces(make_gallery, tmp_path):
    features = make_gallery(0).features
    graph, _ = knn_graph(features, 4, files(tmp_path), "part", graph_k=10 * len(features))
    assert [path.name for path in tmp_path.iterdir()] == [f"faiss_k_{len(features) - 1}.npz"]
    assert same(graph, build_knn(features, 4))


def test_jobs_that_need_one_graph_build_it_once(make_gallery, tmp_path, monkeypatch):
    built = []

    def slow_build(*arguments):
        built.append(arguments)
        time.sleep(0.1)
        return build_knn(*arguments)

    monkeypatch.setattr(lcde.data.knn, "build_knn", slow_build)
    features = make_gallery(0).features
    with ThreadPoolExecutor(4) as pool:
        graphs = list(pool.map(lambda k: knn_graph(features, k, files(tmp_path), "part", 9)[0], (4, 6, 9, 9)))
    assert len(built) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["faiss_k_9.npz"]
    assert all(same(graph, build_knn(features, k)) for graph, k in zip(graphs, (4, 6, 9, 9), strict=True))


@pytest.mark.parametrize(("name", "layout"), [("faiss_k_{k}.npz", "data"), ("a_{k}.npz", "arrays"), ("a.npy", "npy")])
def test_jobs_search_some_rows_of_a_graph_each(make_gallery, tmp_path, monkeypatch, name, layout):
    features, searched = make_gallery(0).features, []

    def choose(*arguments):
        search = choose_search(*arguments)

        def slow(queries):
            searched.append((get_ident(), len(queries)))
            time.sleep(0.02)
            return search(queries)

        return slow

    monkeypatch.setattr(lcde.data.knn, "choose_search", choose)
    monkeypatch.setattr(lcde.data.knn, "SHARD_ROWS", 6)
    monkeypatch.setattr(lcde.data.knn, "WAIT", 0.01)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: knn_graph(features, 6, GraphFiles(tmp_path, name, layout), "part"), range(3)))
    assert sorted(number for _, number in searched) == [4, 6, 6, 6, 6, 6, 6]  # each row once
    assert len({thread for thread, _ in searched}) == 3
    assert sum(seconds > 0 for _, seconds in found) == 1
    assert all(same(graph, build_knn(features, 6)) for graph, _ in found)
    assert [path.name for path in tmp_path.iterdir()] == [name.format(k=6)]


def search_some_rows(features, folder):
    """Be killed when half of the third shard is written."""
    lcde.data.knn.SHARD_ROWS = 6
    original, written = lcde.data.knn.write_knn, []

    def write(path, *arguments):
        written.append(path)
        if len(written) == 3:
            write_atomically(path, lambda file: (file.write(b"half"), os.kill(os.getpid(), signal.SIGKILL)))
        original(path, *arguments)

    lcde.data.knn.write_knn = write
    knn_graph(features, 6, files(folder), "part")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_job_searches_the_rows_that_a_killed_one_left(processes, make_gallery, tmp_path, monkeypatch):
    gallery, searched = make_gallery(0), []
    killed = processes.Process(target=search_some_rows, args=(gallery.features, tmp_path))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert any(path.suffix == ".unfinished" for path in tmp_path.iterdir())
    monkeypatch.setattr(lcde.data.knn, "SHARD_ROWS", 6)
    neighbours = lcde.data.knn._neighbours
    monkeypatch.setattr(
        lcde.data.knn, "_neighbours", lambda *given, **settings: searched.append(given[3].start) or neighbours(*given)
    )
    graph, _ = knn_graph(gallery.features, 6, files(tmp_path), "part")
    assert searched == [12, 18, 24, 30, 36]
    assert same(graph, gallery.graph)
    assert [path.name for path in tmp_path.iterdir()] == ["faiss_k_6.npz"]


def test_rows_of_other_features_or_another_k_are_not_taken(make_gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(lcde.data.knn, "SHARD_ROWS", 6)
    write = lcde.data.knn.write_knn

    def stop_at_the_end(path, graph, *others):
        if isinstance(graph, list):
            raise KeyboardInterrupt
        write(path, graph, *others)

    only_file = GraphFiles(tmp_path, "graph.npy", "npy")
    for seed, k in ((1, 6), (0, 5)):
        with monkeypatch.context() as patch:
            patch.setattr(lcde.data.knn, "write_knn", stop_at_the_end)
            with pytest.raises(KeyboardInterrupt):
                knn_graph(make_gallery(seed).features, k, only_file, "part")
    assert len([path for path in tmp_path.iterdir() if path.suffix == ".npz"]) == 14
    features = make_gallery(0).features
    assert same(knn_graph(features, 6, only_file, "part")[0], build_knn(features, 6))
    assert [path.name for path in tmp_path.iterdir()] == ["graph.npy"]


def build_with_a_hitch(features, folder, hitch):
    """Build and keep a graph, but for the function ``hitch``, which is to be killed in the middle."""
    original = getattr(lcde.data.knn, hitch)

    def slow(*arguments):
        if hitch == "write_knn":
            write_atomically(arguments[0], lambda file: (file.write(b"half"), file.flush(), time.sleep(600)))
        (folder / "started").touch()
        time.sleep(600)
        original(*arguments)

    setattr(lcde.data.knn, hitch, slow)
    knn_graph(features, 6, files(folder), "part")


def build(features, folder):
    return knn_graph(features, 6, files(folder), "part")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("hitch", ["build_knn", "write_knn"])
def test_a_job_builds_the_graph_that_a_killed_one_left_undone(hitch, processes, make_gallery, tmp_path):
    gallery = make_gallery(0)
    killed = processes.Process(target=build_with_a_hitch, args=(gallery.features, tmp_path, hitch))
    killed.start()
    lock = ".faiss_k_6.npz.lock"
    while not [path for path in tmp_path.iterdir() if path.name == "started" or (path.stat().st_size == 4)]:
        assert killed.is_alive()
        time.sleep(0.01)
    with processes.Pool(1) as pool:
        waiting = pool.apply_async(build, (gallery.features, tmp_path))
        waiting.wait(0.3)
        assert not waiting.ready()  # the other has the lock
        killed.kill()
        killed.join()
        graph, seconds = waiting.get(60)
    assert killed.exitcode == -signal.SIGKILL
    assert seconds > 0
    assert same(graph, gallery.graph)
    assert same(build(gallery.features, tmp_path)[0], gallery.graph)
    assert {path.name for path in tmp_path.iterdir()} - {"started", lock} == {"faiss_k_6.npz"}


@pytest.mark.parametrize("duplicates", [0, 15])
def test_larger_graph_serves_a_smaller_k(make_gallery, tmp_path, duplicates):
    features = make_gallery(0, duplicates=duplicates).features
    knn_graph(features, 9, files(tmp_path), "part")
    graph, _ = knn_graph(features, 5, files(tmp_path), "part")
    np.testing.assert_allclose(graph.similarities, build_knn(features, 5).similarities, atol=1e-6)
    assert np.array_equal(graph.indices[:, 0], np.arange(len(features)))
    assert graph.indices.flags.c_contiguous
    assert len(list(tmp_path.iterdir())) == 1


def test_smallest_sufficient_graph_serves(make_gallery, tmp_path):
    gallery = make_gallery(0)
    write_knn(tmp_path / "faiss_k_6.npz", gallery.graph, "", "data")
    for k in (5, 9):
        (tmp_path / f"faiss_k_{k}.npz").write_bytes(b"never opened")
    assert same(knn_graph(gallery.features, 6, files(tmp_path), "part")[0], gallery.graph)


def test_smaller_graph_does_not_serve_a_larger_k(make_gallery, tmp_path):
    features = make_gallery(0).features
    knn_graph(features, 5, files(tmp_path), "part")
    assert same(knn_graph(features, 9, files(tmp_path), "part")[0], build_knn(features, 9))
    assert {path.name for path in tmp_path.iterdir()} == {"faiss_k_5.npz", "faiss_k_9.npz"}


def test_graph_of_another_program_is_put_in_order(make_gallery, tmp_path):
    gallery = make_gallery(0)
    write_knn(tmp_path / "faiss_k_6.npz", columns(gallery.graph, slice(None, None, -1)), "", "data")
    assert same(knn_graph(gallery.features, 6, files(tmp_path), "part")[0], gallery.graph)


def refused(*values):
    return pytest.raises(InputError, match=".*".join(re.escape(str(value)) for value in values))


def test_graph_of_other_features_is_refused(make_gallery, tmp_path):
    knn_graph(make_gallery(0).features, 6, files(tmp_path), "part")
    with refused(tmp_path / "faiss_k_6.npz", "other features"):
        knn_graph(make_gallery(1).features, 6, files(tmp_path), "part")


def changed(graph, index=None, similarity=None):
    copy = copy_of(graph)
    for array, value in ((copy.indices, index), (copy.similarities, similarity)):
        if value is not None:
            array[3, 2] = value
    return copy


DAMAGED = [
    (lambda graph: changed(graph, index=40), ["neighbour 40", "40 faces"]),
    (lambda graph: changed(graph, index=-1), ["neighbour -1", "40 faces"]),
    (lambda graph: changed(graph, similarity=0.1), ["similarities", "off"]),
    (lambda graph: changed(graph, similarity=np.nan), ["similarities"]),
    (lambda graph: KNNGraph(graph.indices[:30], graph.similarities[:30]), ["30 rows", "40 faces"]),
    (lambda graph: columns(graph, [0, 1, 1, 2, 3, 4]), ["name one neighbour twice"]),
    (lambda graph: columns(graph, slice(4)), ["4 neighbours", "k=6"]),
]


@pytest.mark.parametrize(("damage", "values"), DAMAGED)
def test_stored_graph_that_does_not_fit_is_refused(make_gallery, tmp_path, damage, values):
    gallery = make_gallery(0)
    write_knn(tmp_path / "faiss_k_6.npz", damage(gallery.graph), "", "data")
    with refused(tmp_path / "faiss_k_6.npz", *values, "delete it"):
        knn_graph(gallery.features, 6, files(tmp_path), "part")


@pytest.mark.parametrize("k", [40, 400, 1])
def test_k_must_lie_between_2_and_the_faces(make_gallery, tmp_path, k):
    with refused(f"dataset.k={k}", "2 and 39", "40 faces of part1_test"):
        knn_graph(make_gallery(0).features, k, files(tmp_path), "part1_test")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("damage", "values"), DAMAGED)
def test_own_graph_that_does_not_fit_is_refused(make_gallery, damage, values):
    gallery = make_gallery(0)
    graph = damage(gallery.graph)
    with refused("my graph", *values, "correct the graph"):
        own_graph(graph.indices, graph.similarities, gallery.features, 6, "my graph")


def test_every_row_of_an_own_graph_is_checked(make_gallery):
    gallery = make_gallery(0, num_faces=400)
    copy = copy_of(gallery.graph)
    copy.indices[101, 3] = copy.indices[101, 2]
    with refused("twice"):
        own_graph(copy.indices, None, gallery.features, 6, "my graph")
    copy = changed(gallery.graph)
    copy.similarities[101, 5] += 0.1
    with refused("off"):
        own_graph(copy.indices, copy.similarities, gallery.features, 6, "my graph")


def test_own_graph_without_the_faces_themselves_is_refused(make_gallery):
    gallery = make_gallery(0)
    others = gallery.graph.indices[:, 1:]
    with refused("my graph", "40 of 40 faces are not among their own neighbours"):
        own_graph(others, None, gallery.features, 5, "my graph")


@pytest.mark.parametrize(
    ("indices", "values"),
    [
        (np.zeros(5, dtype=int), "(5,)"),
        (np.full((40, 6), 0.5), "(float64) are not whole numbers"),
        (np.full((40, 6), "0"), "<U1"),
        (np.zeros((40, 0), dtype=int), "0 neighbours"),
    ],
)
def test_own_graph_of_another_shape_or_type_is_refused(make_gallery, indices, values):
    with refused("my graph", values):
        own_graph(indices, None, make_gallery(0).features, 6, "my graph")


def test_own_similarities_of_another_shape_are_refused(make_gallery):
    gallery = make_gallery(0)
    with refused("my graph", "float32", "(40, 5)", "(40, 6)"):
        own_graph(gallery.graph.indices, gallery.graph.similarities[:, 1:], gallery.features, 6, "my graph")


@given(st.integers(0, 10_000), st.integers(2, 9), st.booleans())
def test_own_graph_is_sorted_and_sliced(make_gallery, seed, k, with_similarities):
    gallery = make_gallery(seed, k=9)
    order = np.random.default_rng(seed).permutation(9)
    graph = KNNGraph(gallery.graph.indices[:, order].astype(np.uint64), gallery.graph.similarities[:, order])
    half = graph.similarities.astype(np.float16) if with_similarities else None
    found = own_graph(graph.indices, half, gallery.features, k, "my graph")
    assert found.indices.dtype == np.int32
    assert found.indices.flags.c_contiguous
    assert same(found, columns(gallery.graph, slice(k)))


def test_own_graph_of_few_faces_has_all_of_them(make_gallery):
    gallery = make_gallery(0, num_faces=6)
    assert same(own_graph(gallery.graph.indices, None, gallery.features, 80, "my graph"), gallery.graph)
    with refused("5 neighbours", "k=6"):
        own_graph(gallery.graph.indices[:, :5], None, gallery.features, 80, "my graph")
