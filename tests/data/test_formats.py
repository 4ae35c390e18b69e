import os
import re
import tracemalloc

import numpy as np
import pytest

from lcde.data.formats import (
    normalise,
    read_image_list,
    read_knn,
    read_labels,
    read_matrix,
    write_knn,
)
from lcde.data.gallery import KNNGraph
from lcde.errors import InputError
from lcde.files import write_atomically


def refused(path, *values):
    """The InputError that names ``path`` and then ``values``."""
    return pytest.raises(InputError, match="(?s)" + ".*".join(re.escape(str(value)) for value in (path, *values)))


def test_features_are_read_with_unit_norm(tmp_path):
    raw = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32) * 7
    raw.tofile(tmp_path / "faces.bin")
    features = read_matrix(tmp_path / "faces.bin", 3, 5)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-6)


def file_of(array):
    """The file that ``array`` lies in, or None."""
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array if array is None else array.filename


@pytest.mark.parametrize("name", ["faces.bin", "faces.npy"])
def test_unit_features_stay_in_their_file(tmp_path, make_gallery, name):
    features = make_gallery(0).features
    features.tofile(tmp_path / name) if name.endswith(".bin") else np.save(tmp_path / name, features)
    read = read_matrix(tmp_path / name, *features.shape[::-1])
    assert np.array_equal(read, features)
    assert file_of(read) == tmp_path / name
    assert not read.flags.writeable


@pytest.mark.parametrize("change", ["length", "one length", "type", "order", "archive"])
def test_other_features_are_read_into_memory(tmp_path, make_gallery, change):
    expected = make_gallery(0).features
    features, path = expected.copy(), tmp_path / ("faces.npz" if change == "archive" else "faces.npy")
    features[: 1 if change == "one length" else None] *= 2 if "length" in change else 1
    features = features.astype(np.float64 if change == "type" else np.float32)
    np.save(path, np.asfortranarray(features) if change == "order" else features)
    if change == "archive":
        np.savez(path, features)
    read = read_matrix(path, None)
    np.testing.assert_allclose(read, expected, atol=1e-6)
    assert file_of(read) is None
    assert read.flags.c_contiguous


@pytest.mark.parametrize("bad", [[np.nan, 1], [1, np.inf], [-np.inf, np.inf], [0, 0]])
def test_rows_without_a_direction_are_named(tmp_path, bad):
    np.array([[1, 2], [3, 4], bad, [5, 6], bad], dtype=np.float32).tofile(tmp_path / "faces.bin")
    with refused(tmp_path / "faces.bin", "2 of 5", "row 2"):
        read_matrix(tmp_path / "faces.bin", 2, 5)


def test_normalise_names_its_source():
    with refused("faces.npy", "row 0"):
        normalise(np.zeros((1, 2), dtype=np.float32), "faces.npy")


@pytest.mark.parametrize(("num_faces", "feature_dim", "width"), [(4, 4, 3), (3, 3, 4), (5, 2, 2.4)])
def test_file_of_another_size_is_refused(tmp_path, num_faces, feature_dim, width):
    np.ones(12, dtype=np.float32).tofile(tmp_path / "faces.bin")
    with refused(tmp_path / "faces.bin", "48 bytes", f"{num_faces} faces", f"feature_dim={feature_dim}", width):
        read_matrix(tmp_path / "faces.bin", feature_dim, num_faces)


def test_missing_file_is_named(tmp_path):
    with refused("features", tmp_path / "faces.bin", "does not exist"):
        read_matrix(tmp_path / "faces.bin", 3, 5)


def test_chosen_rows_are_those_of_all(tmp_path, make_gallery):
    features = make_gallery(0).features
    features.tofile(tmp_path / "faces.bin")
    rows = np.arange(len(features)) % 3 == 1
    chosen = read_matrix(tmp_path / "faces.bin", *features.shape[::-1], rows)
    assert type(chosen) is np.ndarray
    assert np.array_equal(chosen, read_matrix(tmp_path / "faces.bin", *features.shape[::-1])[rows])


@pytest.mark.parametrize("name", ["a.bin", "a.npy", "a.npz", "a.pt"])
@pytest.mark.parametrize(
    ("content", "words"), [(b"", "0 bytes"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")]
)
def test_empty_files_and_git_lfs_pointers_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    for read in (lambda path: read_matrix(path, 4), read_labels, read_knn, lambda path: read_image_list(path, 2)):
        with refused(tmp_path / name, words):
            read(tmp_path / name)


TEXTS = {
    "integers": ("30\n-2\n30\n7\n", [2, 0, 2, 1]),
    "integers by value": ("10\n9\n007\n", [2, 1, 0]),
    "Windows line ends": ("30\r\n-2\r\n", [1, 0]),
    "byte order mark": ("\ufeff30\n-2\n30", [1, 0, 1]),
    "floats": ("1e1\n9.0\n", [1, 0]),
    "names": ("Zoë Ü\nanna\nBob\nanna\n", [1, 2, 0, 2]),
    "names and integers": ("10\n9\nanna", [0, 1, 2]),
    "underscores": ("1_23\n12_3\n1_23", [1, 0, 1]),  # Python reads all of these as 123
    "integers beyond int64": ("99999999999999999999\n99999999999999999998", [1, 0]),
    "names with dots": ("1.jpg\n0.jpg", [1, 0]),
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.values(), ids=TEXTS)
def test_text_labels_are_numbered_by_value_or_name(tmp_path, text, expected):
    (tmp_path / "faces.meta").write_bytes(text.encode())
    labels = read_labels(tmp_path / "faces.meta")
    assert labels.dtype == np.int64
    assert labels.tolist() == expected


ARRAYS = {
    "integers": np.array([30, -2, 30], dtype=np.int16),
    "floats": np.array([30, -2, 30.0], dtype=np.float32),
    "names": np.array(["b", "a", "b"]),
    "bytes": np.array(["b", "a", "b"]).astype("S4"),
    "numbers as text": np.array(["10", "9", "10"]),
}


@pytest.mark.parametrize("values", ARRAYS.values(), ids=ARRAYS)
def test_array_labels_are_numbered_by_value_or_name(tmp_path, values):
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "b.npz", features=np.eye(3), y=values, sizes=np.ones((3, 2)), others=np.ones(4))
    assert read_labels(tmp_path / "a.npy").tolist() == [1, 0, 1]
    assert read_labels(tmp_path / "b.npz", 3).tolist() == [1, 0, 1]


def test_labels_survive_a_round_trip(tmp_path, make_gallery):
    labels = np.unique(make_gallery(0).labels_true, return_inverse=True)[1]
    np.savetxt(tmp_path / "faces.meta", labels, fmt="%d")
    assert np.array_equal(read_labels(tmp_path / "faces.meta"), labels)


@pytest.mark.parametrize("content", [b"\n\n", b"\r\n", b"\xff\xfe\x00", b"1\n1.5\n", b"1\nnan\n"])
def test_unusable_label_text_is_named(tmp_path, content):
    (tmp_path / "faces.meta").write_bytes(content)
    with refused(tmp_path / "faces.meta"):
        read_labels(tmp_path / "faces.meta")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([1, np.nan]), "nan (row 1)"),
        (np.array([1, 2, 1.5]), "1.5 (row 2)"),
        (np.array([np.inf]), "inf"),
        (np.ones((2, 2)), "shape (2, 2)"),
        (np.array([["a"]]), "shape (1, 1)"),
        (np.ones(2, dtype=complex), "complex"),
        (np.array([], dtype=int), "shape (0,)"),
    ],
)
def test_unusable_label_arrays_are_named(tmp_path, values, words):
    np.save(tmp_path / "labels.npy", values)
    with refused(tmp_path / "labels.npy", words):
        read_labels(tmp_path / "labels.npy")


def test_python_objects_are_refused_with_a_remedy(tmp_path):
    np.save(tmp_path / "labels.npy", np.array(["a", "b"], dtype=object), allow_pickle=True)
    for read in (read_labels, lambda path: read_matrix(path, None)):
        with refused(tmp_path / "labels.npy", "astype(str)"):
            read(tmp_path / "labels.npy")


def npz(folder, **arrays):
    np.savez(folder / "faces.npz", **arrays)
    return folder / "faces.npz"


def test_the_matrix_of_an_archive_is_its_features(tmp_path):
    raw = np.arange(1, 13).reshape(4, 3)
    for arrays in (
        {"anything": raw, "names": np.array(list("abcd")), "images": np.zeros((4, 2, 2))},
        {"embeddings": raw, "boxes": np.zeros((4, 4))},
        {"trainX": raw, "trainY": np.arange(4), "testX": raw[:2]},
        {"features": raw, "names": np.array([{}], dtype=object)},
    ):
        features = read_matrix(npz(tmp_path, **arrays), None)
        np.testing.assert_allclose(features, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize(
    "names", [("one", "two"), ("features", "embeddings"), ()], ids=["no name known", "two known", "none"]
)
def test_ambiguous_archives_are_refused_with_what_they_hold(tmp_path, names):
    path = npz(tmp_path, **{name: np.eye(3, 5) for name in names})
    with refused(path, *(f"{name} (float64, shape (3, 5))" for name in names), "matrix of numbers"):
        read_matrix(path, None)
    path = npz(tmp_path, features=np.eye(3), a=np.arange(3), b=np.array(list("xyz")))
    with refused(path, "a (int64, shape (3,))", "b (<U1, shape (3,))", "one a face"):
        read_labels(path, 3)


@pytest.mark.parametrize("layout", ["data", "knns", "arrays", "npy"])
def test_graph_survives_a_round_trip(tmp_path, make_gallery, layout):
    graph = make_gallery(0).graph
    path = tmp_path / "knns" / ("graph.npy" if layout == "npy" else "graph.npz")
    write_knn(path, graph, "abc", layout)
    read = read_knn(path)
    assert read.indices.dtype == np.int32
    assert np.array_equal(read.indices, graph.indices)
    if layout == "npy":
        assert (read.similarities, read.fingerprint) == (None, "")
    else:
        assert (read.similarities.dtype, read.fingerprint) == (np.float32, "abc")
        np.testing.assert_allclose(read.similarities, graph.similarities, atol=1e-6)


@pytest.mark.parametrize("layout", ["data", "knns", "arrays", "npy"])
def test_graphs_of_consecutive_faces_make_one_file(tmp_path, make_gallery, layout):
    graph = make_gallery(0).graph
    pieces = [KNNGraph(graph.indices[rows], graph.similarities[rows]) for rows in (slice(0, 7), slice(7, 40))]
    whole, joined = (tmp_path / f"{name}.{'npy' if layout == 'npy' else 'npz'}" for name in ("whole", "joined"))
    write_knn(whole, graph, "abc", layout)
    write_knn(joined, pieces, "abc", layout)
    for expected, array in zip(read_knn(whole), read_knn(joined), strict=True):
        assert np.array_equal(expected, array)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_of_a_graph_stay_in_a_file_that_holds_them_uncompressed(tmp_path, make_gallery, write):
    graph = make_gallery(0).graph
    write(tmp_path / "a.npz", indices=graph.indices, similarities=graph.similarities)
    read = read_knn(tmp_path / "a.npz")
    for found, expected in zip(read[:2], (graph.indices, graph.similarities), strict=True):
        assert np.array_equal(found, expected)
        assert file_of(found) == (tmp_path / "a.npz" if write is np.savez else None)


def test_graph_of_another_program_has_no_fingerprint(tmp_path):
    np.savez_compressed(tmp_path / "graph.npz", data=np.array([[[0, 1], [0, 0.25]], [[1, 0], [0, 0.25]]]))
    graph = read_knn(tmp_path / "graph.npz")
    assert graph.indices.tolist() == [[0, 1], [1, 0]]
    assert graph.similarities.tolist() == [[1, 0.75], [1, 0.75]]
    assert graph.fingerprint == ""


@pytest.mark.parametrize("similarities", [None, np.array([[1, 0.75], [1, 0.75]], dtype=np.float16)])
def test_graph_of_named_arrays_is_read(tmp_path, similarities):
    arrays = {} if similarities is None else {"similarities": similarities}
    np.savez(tmp_path / "graph.npz", indices=np.array([[0, 1], [1, 0]]), **arrays)
    graph = read_knn(tmp_path / "graph.npz")
    assert graph.indices.tolist() == [[0, 1], [1, 0]]
    assert graph.similarities is None if similarities is None else np.array_equal(graph.similarities, similarities)


@pytest.mark.parametrize("bad", [0.5, np.nan, 2**32])
def test_neighbours_that_are_no_int32_are_named(tmp_path, bad):
    np.savez(tmp_path / "graph.npz", indices=np.array([[0, bad], [1, 0]]))
    with refused(tmp_path / "graph.npz", "whole numbers"):
        read_knn(tmp_path / "graph.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_read_a_few_at_a_time_are_the_same(tmp_path, monkeypatch, save, dtype, order):
    monkeypatch.setattr("lcde.data.gallery.ROWS", 7)
    data = np.random.default_rng(0).integers(1000, size=(40, 2, 6)).astype(dtype)
    data[:, 1] /= 1000
    save(tmp_path / "graph.npz", data=np.array(data, order=order))
    graph = read_knn(tmp_path / "graph.npz")
    assert np.array_equal(graph.indices, data[:, 0])
    assert np.array_equal(graph.similarities, (1 - data[:, 1]).astype(np.float32))


def peak_of(action):
    tracemalloc.start()
    try:
        return action(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reading_takes_the_memory_of_what_it_returns(tmp_path, monkeypatch, save):
    monkeypatch.setattr("lcde.data.gallery.ROWS", 64)
    num_faces, dim, k = 4096, 32, 16
    rng = np.random.default_rng(0)
    raw = rng.standard_normal((num_faces, dim), dtype=np.float32)
    raw.tofile(tmp_path / "faces.bin")
    features, peak = peak_of(lambda: read_matrix(tmp_path / "faces.bin", dim, num_faces))
    assert peak < 1.25 * features.nbytes
    features, peak = peak_of(lambda: read_matrix(tmp_path / "faces.bin", dim))
    assert peak < 1.25 * features.nbytes

    data = rng.random((num_faces, 2, k))  # float64, as other programs write it
    data[:, 0] = rng.integers(num_faces, size=(num_faces, k))
    save(tmp_path / "graph.npz", data=data)
    graph, peak = peak_of(lambda: read_knn(tmp_path / "graph.npz"))
    assert peak < 1.5 * (graph.indices.nbytes + graph.similarities.nbytes)


def test_writing_a_graph_takes_hardly_any_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("lcde.data.gallery.ROWS", 64)
    graph = KNNGraph(np.zeros((4096, 16), dtype=np.int32), np.ones((4096, 16), dtype=np.float32))
    _, peak = peak_of(lambda: write_knn(tmp_path / "graph.npz", graph, "", "data"))
    assert peak < graph.indices.nbytes / 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_matrix_files_are_left_as_they_are(tmp_path, dtype, order):
    raw = np.array(np.random.default_rng(0).integers(1, 9, size=(5, 3)), dtype, order=order)
    np.save(tmp_path / "faces.npy", raw)
    np.savez(tmp_path / "faces.npz", raw)
    for name in ("faces.npy", "faces.npz"):
        features = read_matrix(tmp_path / name, 3)
        assert type(features) is np.ndarray
        assert (features.dtype, features.flags.c_contiguous) == (np.float32, True)
        np.testing.assert_allclose(features, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-6)
    assert np.array_equal(np.load(tmp_path / "faces.npy"), raw)


def archive(path, **arrays):
    np.savez(path, **arrays)
    return path.read_bytes()


BROKEN = {
    "no archive": lambda path: b"not an archive",
    "cut off": lambda path: archive(path, data=np.zeros((4, 2, 3)))[:-60],
    "damaged": lambda path: archive(path, data=np.zeros((4, 2, 3))).replace(bytes(64), bytes(63) + b"!", 1),
    "another key": lambda path: archive(path, knns=np.zeros((4, 2, 3))),
    "text": lambda path: archive(path, data=np.full((4, 2, 3), "x")),
    "objects": lambda path: archive(path, data=np.full((4, 2, 3), {})),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_graph_is_named(tmp_path, content):
    (tmp_path / "graph.npz").write_bytes(content(tmp_path / "graph.npz"))
    with refused(tmp_path / "graph.npz", "delete it"):
        read_knn(tmp_path / "graph.npz")


def test_plain_array_in_place_of_a_graph_is_named(tmp_path):
    with open(tmp_path / "graph.npz", "wb") as file:
        np.save(file, np.zeros((4, 2, 3)))
    with refused(tmp_path / "graph.npz", "delete it"):
        read_knn(tmp_path / "graph.npz")


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (4, 2, 3, 1)])
def test_graph_of_another_shape_is_named(tmp_path, shape):
    np.savez(tmp_path / "graph.npz", data=np.zeros(shape))
    with refused(tmp_path / "graph.npz", shape):
        read_knn(tmp_path / "graph.npz")


def test_written_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "folder" / "file"
    write_atomically(path, lambda file: file.write(b"old"))
    with open(path, "rb") as reader:
        write_atomically(path, lambda file: file.write(b"new"))
        assert reader.read() == b"old"  # who reads meanwhile sees one whole file
    assert [other.read_bytes() for other in path.parent.iterdir()] == [b"new"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_written_file_has_the_permissions_of_the_users_umask(umask, expected, tmp_path):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", lambda file: file.write(b"text"))
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == expected


def test_failed_write_leaves_the_old_file_alone(tmp_path):
    def fail(file):
        file.write(b"half a fi")
        raise KeyboardInterrupt

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", fail)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_rows_whose_squares_are_beyond_float32_are_normalised(make_gallery):
    unit = make_gallery(0).features
    lengths = np.logspace(-30, 30, len(unit), dtype=np.float32)[:, None]
    np.testing.assert_allclose(normalise(lengths * unit, "a test"), unit, atol=1e-6)
