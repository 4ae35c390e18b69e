"""Random bytes and random changes of valid files: refused by `InputError`, or what was written is read."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lcde.data.formats import read_image_list, read_knn, read_labels, read_matrix, write_knn
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.methods.saved import SavedClustering
from lcde.methods.unsupervised import UnsupervisedRule
from lcde.models.base import Model
from lcde.models.lcde import LCDEModel
from lcde.models.weights import load_checkpoint, load_published

UNIT = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0][:, :4].astype(np.float32)
UNIT /= np.linalg.norm(UNIT, axis=1, keepdims=True)
GRAPH = build_knn(UNIT, 3)
LABELS = np.array([3, 1, 1, 2, 7, 7, 7, 0])
features, images = partial(read_matrix, feature_dim=4), partial(read_image_list, num_faces=8)


class Tiny(Model):
    """A model of one number."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.full((3,), value))

    def losses(self, batch, training):
        return {}

    def bind(self, gallery, precision, show_progress, score_cache):
        raise NotImplementedError


def graph_file(path, layout):
    write_knn(path, GRAPH, "abc", layout)


def clustering_file(path):
    SavedClustering(UNIT, GRAPH, LABELS % 2, 3, UnsupervisedRule()).save(path)


def checkpoint_file(path):
    model = Tiny(0.5)
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    checkpoint["method"]["model"]["_target_"] = f"{__name__}.Tiny"
    torch.save(checkpoint, path)


def weights_files(path):
    torch.manual_seed(0)
    model = LCDEModel(4, 4, 1, 4, 4, 0.0, neighbours_per_end=3, negative_weight=1.0)
    torch.save(model.lcenet.state_dict(), path)
    torch.save(model.pcenet.state_dict(), path.with_name("pce.pth"))


def tensor_file(path, **kwargs):
    torch.save(torch.from_numpy(UNIT), path, **kwargs)


FILES = {  # name of the case: reader, file, what writes it, whether every change of a value is found by a checksum
    "features.bin": (features, "a.bin", lambda path: UNIT.tofile(path), False),
    "features.npy": (features, "a.npy", lambda path: np.save(path, UNIT), False),
    "features.npz": (features, "a.npz", lambda path: np.savez(path, a=UNIT), True),
    "features.npz, compressed": (features, "b.npz", lambda path: np.savez_compressed(path, a=UNIT), True),
    "features.pt": (features, "a.pt", tensor_file, True),
    "features.pt, old": (features, "b.pt", partial(tensor_file, _use_new_zipfile_serialization=False), False),
    "labels.npy": (read_labels, "a.npy", lambda path: np.save(path, LABELS), False),
    "labels.npz": (read_labels, "a.npz", lambda path: np.savez(path, a=LABELS), True),
    "labels.txt": (read_labels, "a.txt", lambda path: np.savetxt(path, LABELS, fmt="%d"), False),
    "images": (images, "a.txt", lambda path: path.write_text("\n".join("abcdefgh")), False),
    "graph.npy": (read_knn, "a.npy", partial(graph_file, layout="npy"), False),
    "graph.npz, data": (read_knn, "a.npz", partial(graph_file, layout="data"), True),
    "graph.npz, knns": (read_knn, "b.npz", partial(graph_file, layout="knns"), True),
    "graph.npz, arrays": (read_knn, "c.npz", partial(graph_file, layout="arrays"), True),
    "clustering": (SavedClustering.load, "a.npz", clustering_file, True),
    "checkpoint": (load_checkpoint, "a.ckpt", checkpoint_file, True),
    "weights": (lambda path: load_published(path, path.with_name("pce.pth"), 4), "a.pth", weights_files, True),
}


def arrays(found):
    """What was read, as arrays that can be compared."""
    if isinstance(found, SavedClustering):
        return [found.features, *arrays(found.graph), found.labels, found.k]
    if hasattr(model := getattr(found, "model", found), "state_dict"):
        return [tensor.numpy() for tensor in model.state_dict().values()]
    if hasattr(found, "similarities"):
        return [found.indices, *([] if found.similarities is None else [found.similarities])]
    return [np.array(found, dtype=str) if isinstance(found, list) else found]


def is_sound(found):
    """Whether what was read of a file without checksums is of the promised types and ranges."""
    if isinstance(found, list):
        return len(found) == 8
    if isinstance(found, np.ndarray) and found.ndim == 1:
        return found.dtype == np.int64 and np.array_equal(np.unique(found), np.arange(found.max() + 1))
    if isinstance(found, np.ndarray):
        return found.dtype == np.float32 and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    return found.indices.dtype == np.int32 and found.indices.ndim == 2


@st.composite
def changes(draw):
    """A function that changes bytes, removes and inserts some, or takes other ones."""
    if draw(st.integers(0, 9)) == 0:
        content = draw(st.binary(max_size=300))
        return lambda _: content
    steps = draw(
        st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=6)), min_size=1, max_size=3)
    )

    def change(content):
        for place, removed, inserted in steps:
            start = round(place * len(content))
            content = content[:start] + inserted + content[start + removed :]
        return content

    return change


@pytest.fixture(params=FILES)
def whole(request, tmp_path):
    """Reader, file, its content as arrays, and whether it has checksums."""
    read, name, write, checked = FILES[request.param]
    write(tmp_path / name)
    return read, tmp_path / name, arrays(read(tmp_path / name)), checked


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=changes(), flip=st.none() | st.integers(0, 2**31))
def test_no_change_of_a_file_is_read_as_something_else(whole, change, flip):
    read, path, expected, checked = whole
    content = path.read_bytes()
    if flip is None:
        other = change(content)
    else:
        other = bytearray(content)
        other[flip // 8 % len(content)] ^= 1 << flip % 8
    fuzzed = path.with_name(f"fuzzed{path.suffix}")
    fuzzed.write_bytes(other)
    try:
        found = read(fuzzed)
    except InputError as error:
        found, message = None, str(error)
    if found is None:
        assert str(fuzzed) in message and "\n" not in message
    elif checked:
        for array, written in zip(arrays(found), expected, strict=False):  # similarities may be gone
            assert np.array_equal(array, written)
    else:
        assert is_sound(found)
