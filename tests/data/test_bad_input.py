"""What can be wrong with a file: each case is refused in one sentence that names it, or gives a defined result.

Further cases stand beside the readers: `test_formats` (contents), `test_knn` and `test_datasets` (what does not fit
together), `tests/models/test_weights`, `tests/methods/test_saved` and `tests/test_untrusted`.
"""

import io
import os
import re
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from numpy.lib import format as npy

from lcde.data.datasets import Custom
from lcde.data.formats import read_image_list, read_knn, read_labels, read_matrix
from lcde.data.knn import GraphFiles, build_knn, knn_graph
from lcde.errors import InputError
from lcde.methods.saved import SavedClustering
from lcde.methods.unsupervised import UnsupervisedRule
from lcde.models.lcde import LCDEModel
from lcde.models.weights import load_checkpoint, load_published
from lcde.training.checkpoint_io import AtomicCheckpointIO

RAW = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
UNIT = RAW / np.linalg.norm(RAW, axis=1, keepdims=True)
GRAPH = np.array([[0, 1], [1, 0], [2, 1]])
DATA = np.stack([GRAPH, [[0, 0.25]] * 3], axis=1)


def written(save, *args, **kwargs):
    file = io.BytesIO()
    save(file, *args, **kwargs)
    return file.getvalue()


def as_npy(values):
    return written(np.save, values, allow_pickle=False)


def as_npz(**arrays):
    return written(np.savez, **arrays)


def as_torch(content, **kwargs):
    return written(lambda file: torch.save(content, file, **kwargs))


def longer(name, values, rows):
    """An archive whose array ``name`` tells of ``rows`` rows of ``values`` alone; its checksum is right."""
    file = io.BytesIO()
    header = written(npy.write_array_header_1_0, npy.header_data_from_array_1_0(values[:rows]))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.npy", header + values.tobytes())
    return file.getvalue()


def flipped(content, part):
    """``content`` with one bit of ``part`` changed."""
    assert content.count(part) == 1
    return content.replace(part, bytes([part[0] ^ 1]) + part[1:])


features = partial(read_matrix, feature_dim=4)
three_labels = partial(read_labels, num_faces=3)
three_images = partial(read_image_list, num_faces=3)
many = np.random.default_rng(0).standard_normal((256, 4)).astype(">f4")
records = np.zeros(3, dtype=[("a", "f4"), ("b", "f4")])

REFUSED = {  # name of the case: reader, file, its content, words of the message
    "features.npy, cut": (features, "a.npy", as_npy(RAW)[:-1], "cannot be read as features"),
    "features.npy, cut in its header": (features, "a.npy", as_npy(RAW)[:40], "cannot be read as features"),
    "features.npy, followed by a byte": (
        features,
        "a.npy",
        as_npy(RAW) + b"\0",
        "has 177 bytes, but its header tells",
    ),
    "features.npy, two arrays": (features, "a.npy", as_npy(RAW) * 2, "has 352 bytes, but"),
    "features.npy, an archive": (features, "a.npy", as_npz(a=RAW), "cannot be read as features"),
    "features.npy, text": (features, "a.npy", as_npy(RAW.astype(str)), "numbers"),
    "features.npy, dates": (features, "a.npy", as_npy(RAW.astype("M8[s]")), "numbers"),
    "features.npy, records": (features, "a.npy", as_npy(records), "numbers"),
    "features.npy, an impossible size": (
        *(features, "a.npy", as_npy(RAW).replace(b"(3, 4)", b"(3, 4" + b"0" * 20 + b")")),
        "cannot be read as features",
    ),
    "features.npz, cut": (features, "a.npz", as_npz(a=RAW)[:-60], "cannot be read as features"),
    "features.npz, an array": (features, "a.npz", as_npy(RAW), "cannot be read as features"),
    "features.npz, one bit changed": (features, "a.npz", flipped(as_npz(a=RAW), RAW.tobytes()), "CRC"),
    "features.npz, more than its header tells": (features, "a.npz", longer("a", RAW, 2), "longer than its header"),
    "features.pt, cut": (features, "a.pt", as_torch(torch.tensor(RAW))[:-60], "cannot be read as features"),
    "features.pt, one bit changed": (features, "a.pt", flipped(as_torch(torch.tensor(RAW)), RAW.tobytes()), "damaged"),
    "features.pt, a mapping": (
        features,
        "a.pt",
        as_torch({"a": torch.tensor(RAW)}),
        "dict in place of one tensor",
    ),
    "features.pt, complex": (features, "a.pt", as_torch(torch.tensor(RAW) * 1j), "real numbers"),
    "features.pt, sparse": (features, "a.pt", as_torch(torch.eye(4).to_sparse()), "cannot be read as features"),
    "features.bin, a byte too many": (features, "a.bin", RAW.tobytes() + b"\0", "holds 49 bytes, but 3 faces"),
    "features.bin, float64": (
        *(partial(read_matrix, feature_dim=4, num_faces=3), "a.bin", RAW.astype(float).tobytes()),
        "the file's own width would be 8",
    ),
    "features.bin, big-endian": (features, "a.bin", many.tobytes(), "of 256 rows hold NaN"),
    "labels.npy, cut": (read_labels, "a.npy", as_npy(np.arange(3))[:-1], "cannot be read as labels"),
    "labels.npy, followed by a byte": (read_labels, "a.npy", as_npy(np.arange(3)) + b"\0", "its header tells of 152"),
    "labels.npy, dates": (read_labels, "a.npy", as_npy(np.arange(3).astype("M8[s]")), "integers or names"),
    "labels.npy, bytes that are no UTF-8": (
        read_labels,
        "a.npy",
        as_npy(np.array([b"\xff"])),
        "cannot be read as labels",
    ),
    "labels.npz, one bit changed": (
        *(read_labels, "a.npz", flipped(as_npz(a=np.arange(7, 10)), np.arange(7, 10).tobytes())),
        "CRC",
    ),
    "labels.txt, UTF-16": (read_labels, "a.txt", "1\n2\n".encode("utf-16"), "utf-8"),
    "labels.txt, Latin-1": (read_labels, "a.txt", "Zoë\nAnna".encode("latin-1"), "utf-8"),
    "labels.txt, a line missing": (three_labels, "a.txt", b"1\n\n2\n", "holds 2 labels, but there are 3 faces"),
    "graph.npy, cut": (read_knn, "a.npy", as_npy(GRAPH)[:-1], "cannot be read as kNN graph"),
    "graph.npy, followed by a byte": (read_knn, "a.npy", as_npy(GRAPH) + b"\0", "its header tells of"),
    "graph.npz, knns alone": (read_knn, "a.npz", as_npz(knns=GRAPH), "dists"),
    "graph.npz, knns of another shape": (read_knn, "a.npz", as_npz(knns=GRAPH, dists=np.zeros((3, 3))), "shape (3, 3)"),
    "graph.npz, dists as text": (read_knn, "a.npz", as_npz(knns=GRAPH, dists=np.full((3, 2), "0")), "kNN graph"),
    "graph.npz, fractions": (read_knn, "a.npz", as_npz(data=DATA + 0.5), "whole numbers"),
    "graph.npz, NaN": (read_knn, "a.npz", as_npz(data=np.where(DATA == 2, np.nan, DATA)), "whole numbers"),
    "graph.npz, beyond int32": (read_knn, "a.npz", as_npz(data=np.where(DATA == 2, 2.0**33, DATA)), "whole numbers"),
    "graph.npz, complex": (read_knn, "a.npz", as_npz(data=DATA * 1j), "complex128 of shape (3, 2, 2)"),
    "graph.npz, numbers as text": (read_knn, "a.npz", as_npz(data=DATA.astype("S8")), "|S8 of shape (3, 2, 2)"),
    "graph.npz, more than its header tells": (read_knn, "a.npz", longer("data", DATA, 2), "longer than its header"),
    "graph.npz, more indices than told": (read_knn, "a.npz", longer("indices", GRAPH, 2), "longer than its header"),
    "images, Latin-1": (three_images, "a.txt", "Zoë.jpg\n".encode("latin-1") * 3, "utf-8"),
    "images, a blank line": (
        three_images,
        "a.txt",
        b"a.jpg\n\nb.jpg\nc.jpg\n",
        "lists 4 images, but there are 3 faces",
    ),
}

DEFINED = {  # name of the case: reader, file, its content, what is read
    "features.npy, big-endian": (features, "a.npy", as_npy(RAW.astype(">f8")), UNIT),
    "features.npy, booleans": (features, "a.npy", as_npy(np.eye(4, dtype=bool)), np.eye(4)),
    "features.npy, duplicates": (features, "a.npy", as_npy(RAW[[0, 0, 0]]), UNIT[[0, 0, 0]]),
    "features.npz, followed by bytes": (features, "a.npz", as_npz(a=RAW) + b"\0" * 30, UNIT),
    "features.pt, bfloat16": (features, "a.pt", as_torch(torch.tensor(RAW).bfloat16()), UNIT),
    "features.pt, integers": (features, "a.pt", as_torch(torch.tensor(RAW).int()), UNIT),
    "features.pt, a parameter": (features, "a.pt", as_torch(torch.nn.Parameter(torch.tensor(RAW))), UNIT),
    "features.pt, of old torch": (
        *(features, "a.pt", as_torch(torch.tensor(RAW), _use_new_zipfile_serialization=False)),
        UNIT,
    ),
    "labels.npy, big-endian": (three_labels, "a.npy", as_npy(np.array([5, 3, 5], dtype=">i8")), [1, 0, 1]),
    "labels.npy, beyond int64": (three_labels, "a.npy", as_npy(np.array([2**63, 3, 2**63], np.uint64)), [1, 0, 1]),
    "labels.npy, booleans": (three_labels, "a.npy", as_npy(np.array([True, False, True])), [1, 0, 1]),
    "labels.txt, blank lines at the end": (three_labels, "a.txt", b"5\n3\n5\n\n \n", [1, 0, 1]),
    "labels.txt, old Macintosh line ends": (three_labels, "a.txt", b"5\r3\r5\r", [1, 0, 1]),
    "labels.txt, one identity": (three_labels, "a.txt", b"anna\n" * 3, [0, 0, 0]),
    "labels.txt, all apart": (three_labels, "a.txt", b"3\n1\n2\n", [2, 0, 1]),
    "graph.npz, big-endian": (read_knn, "a.npz", as_npz(data=DATA.astype(">f8")), GRAPH),
    "images, byte order mark": (three_images, "a.txt", "\ufeffa\nb\nc".encode(), list("abc")),
    "images, Windows line ends": (three_images, "a.txt", b"a\r\nb\r\nc\r\n", list("abc")),
}


@pytest.mark.parametrize(("read", "name", "content", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_bad_files_are_refused_in_one_sentence(read, name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path / name))}[^\n]*{re.escape(words)}[^\n]*\\.$"):
        read(tmp_path / name)


@pytest.mark.parametrize(("read", "name", "content", "expected"), DEFINED.values(), ids=DEFINED)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_unusual_files_are_read_right(read, name, content, expected, tmp_path):
    (tmp_path / name).write_bytes(content)
    found = read(tmp_path / name)
    if isinstance(found, list):
        assert found == [tmp_path / image for image in expected]
    else:
        np.testing.assert_allclose(getattr(found, "indices", found), expected, rtol=1e-6)


@pytest.fixture(scope="module")
def trained():
    """Contents of a checkpoint and of weights, as mappings."""
    model = LCDEModel(16, 8, 1, 8, 16, 0.1, neighbours_per_end=3, negative_weight=1.0)
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    return checkpoint


def changed(state, change):
    name = next(name for name, tensor in state.items() if tensor.dim() == 2)
    return {**state, name: change(state[name])}


TENSORS = {  # change of one tensor: words of the message
    "NaN": (lambda tensor: tensor * np.nan, "holds NaN or infinity in .*; give another file"),
    "infinity": (lambda tensor: tensor / 0, "holds NaN or infinity in .*; give another file"),
    "another shape": (lambda tensor: tensor[1:], "size mismatch|cannot be read|does not hold|damaged"),
    "a number": (lambda tensor: 1.0, "cannot be read as|does not hold"),
    "text": (lambda tensor: "a", "cannot be read as|does not hold"),
}


@pytest.mark.parametrize("kind", ["checkpoint", "old checkpoint", "weights"])
@pytest.mark.parametrize(("change", "words"), TENSORS.values(), ids=TENSORS)
def test_unusable_tensors_are_refused(kind, change, words, trained, tmp_path):
    path = tmp_path / "a.ckpt"
    if kind == "weights":
        networks = {
            name: {key.removeprefix(f"{name}."): value for key, value in trained["state_dict"].items() if name in key}
            for name in ("lcenet", "pcenet")
        }
        torch.save(networks["pcenet"], tmp_path / "b.pth")
        torch.save(changed(networks["lcenet"], change), path)
    else:
        checkpoint = trained | {"state_dict": changed(trained["state_dict"], change)}
        torch.save({k: v for k, v in checkpoint.items() if kind == "checkpoint" or k != "method"}, path)
    with pytest.raises(InputError, match=rf"a\.ckpt.*({words})"):
        load_published(path, tmp_path / "b.pth") if kind == "weights" else load_checkpoint(path)


DAMAGE = {  # of a file's content: words of the message
    "cut": (lambda content: content[:-100], "cannot be read as"),
    "cut to its beginning": (lambda content: content[:100], "cannot be read as"),
    "one bit changed": (
        lambda content: content[:2000] + bytes([content[2000] ^ 1]) + content[2001:],
        "cannot be read as",
    ),
    "nothing": (lambda content: b"", r"is empty \(0 bytes\)"),
    "a pointer of git-lfs": (lambda content: b"version https://git-lfs.github.com/spec/v1\n", ".* `git lfs pull`"),
}
WHOLE = {
    "checkpoint": load_checkpoint,
    "weights": lambda path: load_published(path, path),
    "checkpoint to resume": AtomicCheckpointIO().load_checkpoint,
    "clustering": SavedClustering.load,
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_of_lcde_are_refused(kind, damage, words, trained, make_gallery, tmp_path):
    path = tmp_path / "a.file"
    if kind == "clustering":
        gallery, labels = make_gallery(0), np.zeros(40, dtype=np.int64)
        SavedClustering(gallery.features, gallery.graph, labels, 6, UnsupervisedRule()).save(path)
    else:
        torch.save(trained, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"^{re.escape(str(path))} {words}"):
        WHOLE[kind](path)


@pytest.mark.parametrize("read", [features, read_labels, read_knn, three_images, *WHOLE.values()])
def test_folders_in_the_place_of_files_are_named(read, tmp_path):
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path))} is a folder; name the file"):
        read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    np.save(tmp_path / "a.npy", RAW)
    (tmp_path / "a.npy").chmod(0)
    with pytest.raises(InputError, match=r"a\.npy cannot be read: Permission denied"):
        features(tmp_path / "a.npy")


def test_where_no_graph_can_be_kept_none_is_built(make_gallery, tmp_path, monkeypatch):
    monkeypatch.setattr("lcde.data.knn.build_knn", None)
    (tmp_path / "knns").write_text("a file")
    with pytest.raises(InputError, match=r"knns cannot be written to: .*; check the disk's free space"):
        knn_graph(make_gallery(0).features, 6, GraphFiles(tmp_path / "knns", "faiss_k_{k}.npz", "data"), "part")


@pytest.mark.parametrize("labels", ["one identity", "all apart"])
def test_training_on_one_identity_is_refused_and_on_single_faces_defined(labels, make_gallery, tmp_path):
    features = make_gallery(0).features
    np.save(tmp_path / "a.npy", features)
    np.save(tmp_path / "b.npy", np.zeros(40) if labels == "one identity" else np.arange(40))
    dataset = Custom(6, train_features=str(tmp_path / "a.npy"), train_labels=str(tmp_path / "b.npy"))
    if labels == "one identity":
        with pytest.raises(InputError, match="train has 1 identity; training needs two or more"):
            dataset.load(train=True)
    else:
        parts = dataset.load(train=True)
        assert (len(parts.train), len(parts.validation)) == (32, 8)
        assert np.array_equal(parts.train.labels_true, np.arange(32))


def test_faces_that_are_all_alike_have_a_graph(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((12, 4)))
    [gallery] = Custom(6, features=str(tmp_path / "a.npy")).load(train=False).evaluation
    assert np.array_equal(gallery.graph.indices[:, 0], np.arange(12))
    assert all(len(set(row)) == 6 for row in gallery.graph.indices.tolist())
    np.testing.assert_allclose(gallery.graph.similarities, 1, atol=1e-6)
    assert np.array_equal(gallery.graph.indices, build_knn(gallery.features, 6).indices)
