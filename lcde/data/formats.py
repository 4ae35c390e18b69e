"""Read and write features, labels and kNN graphs: the published layouts, and the files that users bring.

Shape letters used everywhere: N faces, D feature dimension, K neighbours counting the face itself.
"""

import pickle
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from lcde.data.gallery import ROWS, KNNGraph, row_blocks
from lcde.errors import InputError
from lcde.files import map_array, read_array, read_header, readable, write_atomically

UNIT = 1e-6  # how far rounding brings the length of a float32 row from 1
REBUILD = "delete it to have it built again."


class ArrayKind(NamedTuple):
    """What an array of a file must be.

    Attributes
    ----------
    rule : str
        For messages.
    ndim : int
    dtypes : str
        Kinds of NumPy dtypes.
    names : tuple of str
        Names in an ``.npz`` archive that decide where several of its arrays would do.
    """

    rule: str
    ndim: int
    dtypes: str
    names: tuple[str, ...]


FEATURE_NAMES = ("features", "embeddings", "embedding", "X", "trainX", "X_train", "arr_0")
LABEL_NAMES = ("labels", "label", "names", "y", "trainY", "y_train", "arr_1")
FEATURES = ArrayKind("features must be a matrix of numbers (N, D)", 2, "biuf", FEATURE_NAMES)
LABELS = ArrayKind("labels must be integers or names, one a face (N,)", 1, "biufUS", LABEL_NAMES)


class StoredGraph(NamedTuple):
    """A kNN file as it is: columns in any order, values not yet checked against the features.

    Attributes
    ----------
    indices : (N, K) int32
    similarities : (N, K) float32, optional
        None where the file holds indices alone.
    fingerprint : str
        Of the features that the graph was built from, empty in files of other programs.
    """

    indices: np.ndarray
    similarities: np.ndarray | None
    fingerprint: str = ""


def map_features(path: Path, feature_dim: int | None, num_faces: int | None = None) -> np.ndarray:
    """Open a file of features without reading the values of ``.npy`` and ``.bin`` files.

    Parameters
    ----------
    path : Path
        ``.npy`` or ``.bin`` file (float32), which are mapped into memory; ``.npz`` or ``.pt`` file, which are read. Of
        an ``.npz`` archive, the only matrix of numbers is taken; where there are several, the only one that has one of
        the names `FEATURE_NAMES`.
    feature_dim : int, optional
        D, checked where given; a ``.bin`` file needs it.
    num_faces : int, optional
        N, checked where given.

    Returns
    -------
    (N, D) of any numbers

    Raises
    ------
    InputError
        On other content and other sizes.
    """
    with readable(path, "features"):
        if path.suffix in (".npy", ".npz"):
            values = _load_array(path, FEATURES, None)
        elif path.suffix == ".pt":
            values = _tensor_values(read_torch(path))
        elif path.suffix == ".bin":
            values = _map_bin(path, feature_dim, num_faces)
        else:
            raise InputError(f"{path} has the ending {path.suffix!r}; features are read from .npy, .npz, .pt and .bin.")
        _require(values, FEATURES, path)
    rows, width = num_faces or len(values), feature_dim or values.shape[1]
    if values.shape != (rows, width):
        raise InputError(f"{path} has shape {values.shape}, expected {rows} faces × dataset.feature_dim={width}.")
    return values


def _tensor_values(tensor: Any) -> np.ndarray:
    """The numbers of a ``tensor`` of a ``.pt`` file, float32 where NumPy lacks their type."""
    if type(tensor).__module__.partition(".")[0] != "torch" or tensor.is_complex():
        raise ValueError(f"it holds {type(tensor).__name__} in place of one tensor of real numbers")
    return tensor.detach().float().numpy()


def read_torch(path: Path) -> Any:
    """Tensors and plain values that ``torch.save`` wrote; nothing else is read, as it would run code.

    Raises
    ------
    ValueError, zipfile.BadZipFile
        Where the file holds other objects, or is damaged.
    Exception
        Of other kinds, by torch, where it is another file.
    """
    import torch  # only for torch's own files; the layouts need NumPy alone

    archive = zipfile.is_zipfile(path)
    if archive:
        with zipfile.ZipFile(path) as file:
            if (damaged := file.testzip()) is not None:  # torch compares no checksums
                raise zipfile.BadZipFile(f"its part {damaged} is damaged")
    try:
        # Mapped into memory, the optimiser's state, two thirds of a checkpoint, takes none.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError:  # whose message advises to run the code
        raise ValueError("it holds more than tensors and plain values, or is damaged") from None


def _map_bin(path: Path, feature_dim: int | None, num_faces: int | None) -> np.ndarray:
    if feature_dim is None:
        raise InputError(f"{path} does not tell the width of its rows; give dataset.feature_dim.")
    size, row = path.stat().st_size, 4 * feature_dim
    rows = size // row if num_faces is None else num_faces
    if size != rows * row:
        needed = f"{rows} faces × dataset.feature_dim={feature_dim} need {rows * row}"
        own = f"the file's own width would be {size / 4 / max(rows, 1):g}"
        raise InputError(f"{path} holds {size} bytes, but {needed}; {own}.")
    return np.memmap(path, np.float32, "r", shape=(rows, feature_dim))


def read_matrix(
    path: Path, feature_dim: int | None, num_faces: int | None = None, rows: np.ndarray | slice = slice(None)
) -> np.ndarray:
    """Read features; parameters as of `map_features`.

    Parameters
    ----------
    rows : (N,) bool or slice
        Faces to read.

    Returns
    -------
    (N, D) or (number of ``rows``, D) float32
        Unit L2 norm. All rows of a file that holds them so stay in the file, read-only: they take no memory of the
        process, and the processes of a machine share what the system keeps of them.

    Raises
    ------
    InputError
        As `map_features`, and on rows that hold NaN, infinity or only zeros.
    """
    values = map_features(path, feature_dim, num_faces)
    if stays_mapped(values):
        return np.asarray(values)[rows]
    values = values[rows]
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, which is refused
        return normalise(np.require(values, np.float32, ["C", "W", "E"]), str(path))  # copied only where it has to be


def stays_mapped(values: np.ndarray, sample: int = 1) -> bool:
    """Whether ``values`` (N, D) of a file are those that `read_matrix` gives; of every so many rows with ``sample``."""
    native = isinstance(values, np.memmap) and values.dtype == np.float32 and values.flags.c_contiguous
    blocks = row_blocks(len(values), size=ROWS * sample)
    lengths = (np.linalg.norm(values[rows.start : rows.stop : sample], axis=1) for rows in blocks)
    with np.errstate(over="ignore", invalid="ignore"):  # `normalise` tells
        return native and all(np.abs(length - 1).max() < UNIT for length in lengths)


def _require(values: np.ndarray, kind: ArrayKind, path: Path) -> None:
    if values.ndim != kind.ndim or values.dtype.kind not in kind.dtypes or not values.size:
        raise InputError(f"{path} holds {values.dtype} of shape {values.shape}; {kind.rule}.")


def _map_npy(path: Path) -> np.ndarray:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if (size := path.stat().st_size) != (needed := values.offset + values.nbytes):
        raise ValueError(f"it has {size} bytes, but its header tells of {needed}")
    return values


def _load_array(path: Path, kind: ArrayKind, num_faces: int | None) -> np.ndarray:
    """The array of an ``.npy`` file, or the only one of an ``.npz`` archive that is of this ``kind`` and length."""
    if path.suffix == ".npy":
        return _map_npy(path)
    with np.load(path, allow_pickle=False) as archive:
        fitting, held = [], []
        for name in archive.files:
            with archive.zip.open(f"{name}.npy") as member:
                shape, _, dtype = read_header(member)
            held.append(f"{name} ({dtype}, shape {shape})")
            if len(shape) == kind.ndim and dtype.kind in kind.dtypes and num_faces in (None, shape[0]):
                fitting.append(name)
        for names in (fitting, [name for name in fitting if name in kind.names]):
            if len(names) == 1:
                return read_array(archive.zip, names[0])
    content, known = ", ".join(held) or "no array", ", ".join(kind.names)
    raise InputError(f"{path} holds {content}; {kind.rule}, the only ones or named one of {known}.")


def normalise(features: np.ndarray, source: str) -> np.ndarray:
    """L2-normalise float32 ``features`` (N, D) in place and return them; ``source`` names them in an `InputError`."""
    blocks = row_blocks(len(features))
    with np.errstate(over="ignore", invalid="ignore"):  # NaN, which is refused
        norms = np.concatenate([np.linalg.norm(features[rows], axis=1) for rows in blocks])
        extreme = ~((norms > 1e-15) & (norms < np.inf))  # their squares may be beyond float32
        norms[extreme] = np.linalg.norm(features[extreme].astype(np.float64), axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        rows = f"{source}: {len(bad)} of {len(features)} rows hold NaN, infinity or only zeros, first row {bad[0]}"
        raise InputError(f"{rows}; remove these faces or extract their embeddings again.")
    features /= norms[:, None]
    return features


def read_labels(path: Path, num_faces: int | None = None) -> np.ndarray:
    """Read the identity of each face: integers or names.

    Parameters
    ----------
    path : Path
        ``.npy`` vector, ``.npz`` archive, or text (UTF-8) with one label a line. Of an archive, the only vector of
        labels with ``num_faces`` entries is read; of several, the only one that has one of the names `LABEL_NAMES`.
    num_faces : int, optional
        N, checked where given.

    Returns
    -------
    (N,) int64
        Identities numbered from 0 in ascending order of label: by value where all labels are integers, by name
        otherwise.

    Raises
    ------
    InputError
        On other content, NaN, numbers that are not whole, and unless there are ``num_faces`` labels.
    """
    with readable(path, "labels"):
        if path.suffix in (".npy", ".npz"):
            values = _load_array(path, LABELS, num_faces)
        else:
            lines = map(str.strip, path.read_text(encoding="utf-8-sig").split("\n"))
            values = np.array([line for line in lines if line])
        _require(values, LABELS, path)
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8")
        if values.dtype.kind == "U":
            values = _numbers(values)
    if num_faces not in (None, len(values)):
        raise InputError(f"{path} holds {len(values)} labels, but there are {num_faces} faces; give one label a face.")
    if values.dtype.kind == "f" and not (whole := np.isfinite(values) & (values == np.round(values))).all():
        bad = np.flatnonzero(~whole)[0]
        raise InputError(f"{path} holds the label {values[bad]} (row {bad}); labels must be integers or names.")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _numbers(texts: np.ndarray) -> np.ndarray:
    """Texts (N,) as int64 or float64 where all are numbers that these types hold exactly, else as they are."""
    if not any("_" in text for text in texts):  # Python takes 1_2 for 12
        with suppress(ValueError, OverflowError):
            return texts.astype(np.int64)
        with suppress(ValueError):
            values = texts.astype(np.float64)
            if not (np.abs(values) >= 2**53).any():
                return values
    return texts


def read_image_list(path: Path, num_faces: int) -> list[Path]:
    """Image files of N faces, one a line, relative to the list's own folder; raises `InputError` on another number."""
    with readable(path, "list of images"):
        images = [path.parent / line for line in path.read_text(encoding="utf-8-sig").splitlines()]
    if len(images) != num_faces:
        raise InputError(f"{path} lists {len(images)} images, but there are {num_faces} faces; give one a line.")
    return images


def read_knn(path: Path, remedy: str = REBUILD) -> StoredGraph:
    """Read a kNN file.

    Parameters
    ----------
    path : Path
        Archive with ``data`` (N, 2, K: indices and 1 - similarity), with ``knns`` and ``dists`` (N, K), or with
        ``indices`` and optionally ``similarities`` (N, K), which stay in the file where it holds them as `StoredGraph`
        does; or an ``.npy`` matrix of indices alone.
    remedy : str
        What the message of an error says to do.

    Raises
    ------
    InputError
        On other content.
    """
    with readable(path, "kNN graph", f"; {remedy.rstrip('.')}"):
        if path.suffix == ".npy":
            return as_graph(_map_npy(path), None)
        with np.load(path, allow_pickle=False) as archive:
            held = {name: partial(read_array, archive.zip, name) for name in archive.files}
            fingerprint = str(held["fingerprint"]()) if "fingerprint" in held else ""
            if "knns" in held:
                return as_graph(held["knns"](), 1 - held["dists"](), fingerprint)
            if "indices" in held:
                arrays = [map_array(path, archive.zip, name) for name in ("indices", "similarities") if name in held]
                return as_graph(arrays[0], arrays[1] if len(arrays) > 1 else None, fingerprint)
            with archive.zip.open("data.npy") as member:
                return StoredGraph(*_read_data(member), fingerprint)


def as_graph(indices: np.ndarray, similarities: np.ndarray | None, fingerprint: str = "") -> StoredGraph:
    """``indices`` (N, K) of whole numbers and ``similarities`` (N, K) as a graph; raises ValueError on other arrays."""
    expected = indices.shape if indices.ndim == 2 else "(N, K)"
    for name, array in (("indices", indices), ("similarities", similarities)):
        if array is not None and (array.shape != expected or array.dtype.kind not in "iuf"):
            raise ValueError(f"its {name} are {array.dtype} of shape {array.shape}, not numbers of shape {expected}")
    with np.errstate(invalid="ignore"):  # NaN, which is refused
        numbers = np.asarray(indices.astype(np.int32, copy=False))
    if indices.dtype != np.int32:
        _require_whole(numbers, indices)
    values = None if similarities is None else similarities.astype(np.float32, copy=False)
    return StoredGraph(numbers, values, fingerprint)


def _require_whole(numbers: np.ndarray, indices: np.ndarray) -> None:
    if not np.array_equal(numbers, indices):
        raise ValueError(f"its indices ({indices.dtype}) are not whole numbers below 2^31")


def write_knn(path: Path, graph: KNNGraph | Sequence[KNNGraph], fingerprint: str, layout: str) -> None:
    """Write a kNN graph.

    Parameters
    ----------
    path : Path
    graph : KNNGraph or sequence of KNNGraph
        Of all faces, or those of consecutive ones, which make one file and are never in memory together.
    fingerprint : str
        Of the features that it was built from; kept where the layout has room for it.
    layout : {"data", "knns", "arrays", "npy"}
        ``data`` (N, 2, K: indices and 1 - similarity), ``knns`` and ``dists``, ``indices`` and ``similarities``, or
        ``indices`` without an archive.
    """
    pieces = [graph] if isinstance(graph, KNNGraph) else graph
    shape = num_faces, k = sum(map(len, pieces)), pieces[0].k
    number = np.float32 if num_faces < 2**24 else np.float64  # float32 holds integers exactly up to 2^24

    def write_array(
        file: IO[bytes], values: Callable[[KNNGraph], np.ndarray], dtype: type, shape: tuple[int, ...] = shape
    ) -> None:
        npy.write_array_header_1_0(file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
        for piece in pieces:
            for rows in row_blocks(len(piece)):
                block = values(KNNGraph(piece.indices[rows], piece.similarities[rows]))
                file.write(np.ascontiguousarray(block, dtype).data)

    def both(block: KNNGraph) -> np.ndarray:
        return np.stack([block.indices, 1 - block.similarities.astype(number)], axis=1)

    indices = partial(write_array, values=lambda block: block.indices, dtype=np.int32)
    similarities = partial(write_array, values=lambda block: block.similarities, dtype=np.float32)
    distances = partial(write_array, values=lambda block: 1 - block.similarities, dtype=np.float32)
    members = {
        "data": {"data": partial(write_array, values=both, dtype=number, shape=(num_faces, 2, k))},
        "knns": {"knns": indices, "dists": distances},
        "arrays": {"indices": indices, "similarities": similarities},
    }

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            with archive.open("fingerprint.npy", "w") as member:
                npy.write_array(member, np.array(fingerprint))
            for name, write_member in members[layout].items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    write_member(member)

    write_atomically(path, indices if layout == "npy" else write)


def _read_data(file: IO[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """``indices`` (N, K) int32 and ``similarities`` float32 of an ``.npy`` array (N, 2, K), never whole in memory."""
    shape, fortran_order, dtype = read_header(file)
    if len(shape) != 3 or shape[1] != 2 or dtype.kind not in "iuf":
        raise ValueError(f"'data' is {dtype} of shape {shape}, expected numbers of shape (N, 2, K)")
    num_faces, _, k = shape
    indices, similarities = np.empty((num_faces, k), dtype=np.int32), np.empty((num_faces, k), dtype=np.float32)
    for rows in row_blocks(num_faces, size=num_faces if fortran_order else None):
        count = (rows.stop - rows.start) * 2 * k
        data = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
        data = data.reshape((-1, 2, k), order="F" if fortran_order else "C")
        with np.errstate(invalid="ignore"):  # NaN, which is refused
            indices[rows], similarities[rows] = data[:, 0], 1 - data[:, 1]
        _require_whole(indices[rows], data[:, 0])
    if file.read(1):  # at its end, an archive compares the checksum
        raise ValueError("'data' is longer than its header says")
    return indices, similarities
