import re
import tracemalloc

import numpy as np
import pytest

from lcde.data import formats
from lcde.data.formats import (
    normalise,
    read_features,
    read_knn,
    read_labels,
    read_matrix,
    require_file,
    write_atomically,
    write_knn,
)
from lcde.errors import InputError


def refused(path, *values):
    """The InputError that names ``path`` and then ``values``."""
    return pytest.raises(InputError, match="(?s)" + ".*".join(re.escape(str(value)) for value in (path, *values)))


def test_features_are_read_with_unit_norm(tmp_path):
    raw = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32) * 7
    raw.tofile(tmp_path / "faces.bin")
    features = read_features(tmp_path / "faces.bin", 5, 3)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-6)


def test_unit_features_survive_a_round_trip(tmp_path, make_part):
    features = make_part(0).features
    features.tofile(tmp_path / "faces.bin")
    np.testing.assert_allclose(read_features(tmp_path / "faces.bin", *features.shape), features, rtol=1e-6)


@pytest.mark.parametrize("bad", [[np.nan, 1], [1, np.inf], [-np.inf, np.inf], [0, 0]])
def test_rows_without_a_direction_are_named(tmp_path, bad):
    np.array([[1, 2], [3, 4], bad, [5, 6], bad], dtype=np.float32).tofile(tmp_path / "faces.bin")
    with refused(tmp_path / "faces.bin", "2 of 5", "row 2"):
        read_features(tmp_path / "faces.bin", 5, 2)


def test_normalise_names_its_source():
    with refused("faces.npy", "row 0"):
        normalise(np.zeros((1, 2), dtype=np.float32), "faces.npy")


@pytest.mark.parametrize(("num_faces", "feature_dim", "width"), [(4, 4, 3), (3, 3, 4), (5, 2, 2.4)])
def test_file_of_another_size_is_refused(tmp_path, num_faces, feature_dim, width):
    np.ones(12, dtype=np.float32).tofile(tmp_path / "faces.bin")
    with refused(tmp_path / "faces.bin", "48 bytes", f"{num_faces} labels", f"feature_dim={feature_dim}", width):
        read_features(tmp_path / "faces.bin", num_faces, feature_dim)


def test_missing_file_is_named(tmp_path):
    with refused("features", tmp_path / "faces.bin"):
        require_file(tmp_path / "faces.bin", "features")


def test_labels_are_numbered_from_0_in_ascending_order(tmp_path):
    (tmp_path / "faces.meta").write_text("30\n-2\n30\n7\n")
    labels = read_labels(tmp_path / "faces.meta")
    assert labels.dtype == np.int64
    assert labels.tolist() == [2, 0, 2, 1]


def test_labels_survive_a_round_trip(tmp_path, make_part):
    labels = np.unique(make_part(0).labels_true, return_inverse=True)[1]
    np.savetxt(tmp_path / "faces.meta", labels, fmt="%d")
    assert np.array_equal(read_labels(tmp_path / "faces.meta"), labels)


@pytest.mark.parametrize("bad", ["anna", "1.5", "99999999999999999999"])
def test_label_that_is_no_integer_is_named(tmp_path, bad):
    (tmp_path / "faces.meta").write_text(f"1\n{bad}\n")
    # NumPy does not repeat a number that is too large for int64.
    with refused(tmp_path / "faces.meta", "" if bad.isdecimal() else bad):
        read_labels(tmp_path / "faces.meta")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00"])
def test_file_without_labels_is_named(tmp_path, content):
    (tmp_path / "faces.meta").write_bytes(content)
    with refused(tmp_path / "faces.meta", "one integer label a line"):
        read_labels(tmp_path / "faces.meta")


def test_graph_survives_a_round_trip(tmp_path, make_part):
    part = make_part(0)
    write_knn(tmp_path / "knns" / "graph.npz", part.indices, part.similarities, "abc", "data")
    indices, similarities, fingerprint = read_knn(tmp_path / "knns" / "graph.npz")
    assert (indices.dtype, similarities.dtype, fingerprint) == (np.int32, np.float32, "abc")
    assert np.array_equal(indices, part.indices)
    np.testing.assert_allclose(similarities, part.similarities, atol=1e-6)


def test_graph_of_another_program_has_no_fingerprint(tmp_path):
    np.savez_compressed(tmp_path / "graph.npz", data=np.array([[[0, 1], [0, 0.25]], [[1, 0], [0, 0.25]]]))
    indices, similarities, fingerprint = read_knn(tmp_path / "graph.npz")
    assert indices.tolist() == [[0, 1], [1, 0]]
    assert similarities.tolist() == [[1, 0.75], [1, 0.75]]
    assert fingerprint == ""


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_read_a_few_at_a_time_are_the_same(tmp_path, monkeypatch, save, dtype, order):
    monkeypatch.setattr(formats, "ROWS", 7)
    data = np.random.default_rng(0).integers(1000, size=(40, 2, 6)).astype(dtype)
    data[:, 1] /= 1000
    save(tmp_path / "graph.npz", data=np.array(data, order=order))
    indices, similarities, _ = read_knn(tmp_path / "graph.npz")
    assert np.array_equal(indices, data[:, 0])
    assert np.array_equal(similarities, (1 - data[:, 1]).astype(np.float32))


def peak_of(action):
    tracemalloc.start()
    result = action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reading_takes_the_memory_of_what_it_returns(tmp_path, monkeypatch, save):
    monkeypatch.setattr(formats, "ROWS", 64)
    num_faces, dim, k = 4096, 32, 16
    rng = np.random.default_rng(0)
    raw = rng.standard_normal((num_faces, dim), dtype=np.float32)
    raw.tofile(tmp_path / "faces.bin")
    features, peak = peak_of(lambda: read_features(tmp_path / "faces.bin", num_faces, dim))
    assert peak < 1.25 * features.nbytes
    features, peak = peak_of(lambda: read_matrix(tmp_path / "faces.bin", dim))
    assert peak < 1.25 * features.nbytes

    save(tmp_path / "graph.npz", data=rng.random((num_faces, 2, k)))  # float64, as other programs write it
    (indices, similarities, _), peak = peak_of(lambda: read_knn(tmp_path / "graph.npz"))
    assert peak < 1.5 * (indices.nbytes + similarities.nbytes)


def test_writing_a_graph_takes_hardly_any_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "ROWS", 64)
    indices, similarities = np.zeros((4096, 16), dtype=np.int32), np.ones((4096, 16), dtype=np.float32)
    _, peak = peak_of(lambda: write_knn(tmp_path / "graph.npz", indices, similarities, "", "data"))
    assert peak < indices.nbytes / 2


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
    "empty": lambda path: b"",
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
    assert path.stat().st_mode & 0o777 == 0o644


def test_failed_write_leaves_the_old_file_alone(tmp_path):
    def fail(file):
        file.write(b"half a fi")
        raise KeyboardInterrupt

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", fail)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_rows_whose_squares_are_beyond_float32_are_normalised(make_part):
    unit = make_part(0).features
    lengths = np.logspace(-30, 30, len(unit), dtype=np.float32)[:, None]
    np.testing.assert_allclose(normalise(lengths * unit, "a test"), unit, atol=1e-6)
