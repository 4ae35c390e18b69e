"""Read and write the files of the published layouts: features, labels and kNN graphs.

Shape letters used everywhere: N faces, D feature dimension, K neighbours counting the face itself.
"""

import os
import pickle
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from lcde.errors import InputError

REBUILD = "delete it to have it built again."
# What NumPy raises on damaged or foreign .npy and .npz files, and a lookup in what it read of them.
UNREADABLE = (
    AttributeError,
    EOFError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
ROWS = 4_096  # read, written or measured at a time: millions of faces leave no room for a second copy of them


def require_file(path: Path, what: str) -> Path:
    """Return ``path``; raise `InputError` if no file is there."""
    if not path.is_file():
        raise InputError(f"{what} not found: {path} does not exist; check dataset.root and the part's name.")
    return path


def require_free(*paths: Path) -> None:
    """Raise `InputError` if there is a file already where one of ``paths`` is to be written."""
    for path in paths:
        if path.exists():
            raise InputError(f"{path} exists already; name another one.")


def require_feature_size(path: Path, num_faces: int, feature_dim: int) -> None:
    """Raise `InputError` unless the ``.bin`` file holds ``num_faces`` × ``feature_dim`` float32 values."""
    size, expected = path.stat().st_size, num_faces * feature_dim * 4
    if size != expected:
        hint = f"{size / 4 / num_faces:g}" if num_faces else "unknown"
        raise InputError(
            f"{path} holds {size} bytes, but {num_faces} labels × dataset.feature_dim={feature_dim} need {expected}; "
            f"the file's own width would be {hint}."
        )


def read_features(path: Path, num_faces: int, feature_dim: int) -> np.ndarray:
    """Read a raw float32 ``.bin`` file as (N, D) features with unit L2 norm.

    Raises `InputError` on a wrong size, and on rows that hold NaN, infinity or only zeros.
    """
    require_feature_size(path, num_faces, feature_dim)
    return normalise(np.fromfile(path, dtype=np.float32).reshape(num_faces, feature_dim), str(path))


def require_npy_shape(path: Path, num_faces: int, feature_dim: int) -> None:
    """Raise `InputError` unless the ``.npy`` file holds a (N, D) matrix of that size; reads its header only."""
    shape = npy_shape(path)
    if shape != (num_faces, feature_dim):
        raise InputError(
            f"{path} has shape {shape}, expected {num_faces} labelled faces × dataset.feature_dim={feature_dim}."
        )


def npy_shape(path: Path) -> tuple[int, ...]:
    """Shape of an ``.npy`` array, from its header alone; raises `InputError`."""
    return _load_npy(path, mmap_mode="r").shape


def read_matrix(path: Path, feature_dim: int | None) -> np.ndarray:
    """Read an ``.npy``, ``.npz``, ``.pt`` or ``.bin`` matrix of numbers as (N, D) float32 features with unit L2 norm.

    ``feature_dim`` D is checked where given; a ``.bin`` file needs it. An ``.npz`` archive holds one array, or several
    of which one is "features". Raises `InputError` on other content and on rows that hold NaN, infinity or only zeros.
    """
    values = _load_matrix(path, feature_dim)
    if values.ndim != 2 or values.dtype.kind not in "iufb" or not values.size:
        raise InputError(
            f"{path} holds {values.dtype} of shape {values.shape}; features must be numbers of shape (N, D)."
        )
    if feature_dim is not None and values.shape[1] != feature_dim:
        raise InputError(f"{path} has shape {values.shape}, but dataset.feature_dim={feature_dim}.")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, which is refused
        return normalise(np.require(values, np.float32, "CWE"), str(path))  # copied only where it has to be


def _load_matrix(path: Path, feature_dim: int | None) -> np.ndarray:
    if path.suffix == ".npy":
        return _load_npy(path, mmap_mode="r")
    try:
        if path.suffix == ".npz":
            with np.load(path) as archive:
                names = archive.files
                if len(names) != 1 and "features" not in names:
                    raise InputError(f"{path} holds the arrays {names}; name one of them features.")
                return archive[names[0] if len(names) == 1 else "features"]
        if path.suffix == ".pt":
            import torch  # only for torch's own files; the layouts need numpy alone

            tensor = torch.load(path, map_location="cpu", weights_only=True)
            return tensor.detach().float().numpy() if isinstance(tensor, torch.Tensor) else np.array(None)
        if path.suffix == ".bin":
            if feature_dim is None:
                raise InputError(f"{path} does not tell the width of its rows; give dataset.feature_dim.")
            values = np.fromfile(path, dtype=np.float32)
            if len(values) % feature_dim:
                raise InputError(
                    f"{path} holds {len(values)} numbers, which dataset.feature_dim={feature_dim} does not divide."
                )
            return values.reshape(-1, feature_dim)
    except InputError:
        raise
    except (ValueError, OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    raise InputError(f"{path} has the ending {path.suffix!r}; features are read from .npy, .npz, .pt and .bin files.")


def normalise(features: np.ndarray, source: str) -> np.ndarray:
    """L2-normalise float32 ``features`` (N, D) in place and return them; ``source`` names them in an `InputError`."""
    norms = np.empty(len(features), dtype=np.float32)
    with np.errstate(over="ignore"):
        for start in range(0, len(features), ROWS):
            norms[start : start + ROWS] = np.linalg.norm(features[start : start + ROWS], axis=1)
    extreme = ~((norms > 1e-15) & (norms < np.inf))  # their squares may be beyond float32
    norms[extreme] = np.linalg.norm(features[extreme].astype(np.float64), axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise InputError(
            f"{source}: {len(bad)} of {len(features)} rows hold NaN, infinity or only zeros, first row {bad[0]}; "
            "remove these faces or extract their embeddings again."
        )
    features /= norms[:, None]
    return features


def read_labels(path: Path) -> np.ndarray:
    """Read labels, one integer a line or an ``.npy`` vector of integers.

    Returns (N,) int64 identities numbered from 0 in ascending order of label; raises `InputError`.
    """
    if path.suffix == ".npy":
        values = _load_npy(path)
        if values.ndim != 1 or not (values.dtype.kind in "iu" or np.array_equal(values, np.round(values))):
            raise InputError(
                f"{path} holds {values.dtype} of shape {values.shape}; labels must be integers of shape (N,)."
            )
    else:
        try:
            values = np.array(path.read_text().split(), dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise InputError(f"{path} must hold one integer label a line: {error}.") from None
    if not len(values):
        raise InputError(f"{path} is empty; it must hold one integer label a line.")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def require_label_each(features: np.ndarray, source: Path, labels: np.ndarray, labels_source: str | Path) -> None:
    """Raise `InputError` unless there are as many ``labels`` as ``features`` have rows."""
    if len(features) != len(labels):
        raise InputError(f"{source} holds {len(features)} faces, but {labels_source} {len(labels)} labels.")


def read_image_list(path: str | Path, num_faces: int) -> list[Path]:
    """Image files of N faces, one a line, relative to the list's own folder; raises `InputError` on another number."""
    path = require_file(Path(path), "list of images")
    images = [path.parent / line for line in path.read_text().splitlines()]
    if len(images) != num_faces:
        raise InputError(f"{path} lists {len(images)} images, but there are {num_faces} faces; give one a line.")
    return images


def read_knn(path: Path) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Read a published kNN file, columns in the file's own order.

    Accepts an archive with ``data`` (N, 2, K: indices and 1 - similarity) or ``knns`` and ``dists`` (N, K), and an
    ``.npy`` matrix of indices alone. Returns ``indices`` (N, K) int32, cosine ``similarities`` (N, K) float32 or None,
    and the fingerprint of the features the graph was built from ("" in files of other programs).
    """
    fingerprint, distances = "", None
    try:
        if path.suffix == ".npy":
            indices = np.load(path)
        else:
            with np.load(path) as archive:
                fingerprint = str(archive["fingerprint"]) if "fingerprint" in archive else ""
                if "knns" not in archive:
                    with archive.zip.open("data.npy") as member:
                        return *_read_data(member), fingerprint
                indices, distances = archive["knns"], archive["dists"]
        if indices.ndim != 2 or (distances is not None and distances.shape != indices.shape):
            raise ValueError(f"its indices have shape {indices.shape}, expected (N, K)")
        similarities = None if distances is None else (1 - distances).astype(np.float32)
        return indices.astype(np.int32), similarities, fingerprint
    except UNREADABLE as error:
        raise InputError(f"{path} is not a kNN file of a known layout: {error}; {REBUILD}") from None


def write_knn(path: Path, indices: np.ndarray, similarities: np.ndarray, fingerprint: str, layout: str) -> None:
    """Write a kNN graph as ``layout`` has it, with the features' fingerprint beside it where the layout has room.

    layout: "data" (N, 2, K: indices and 1 - similarity), "knns" (``knns`` and ``dists``) or "npy" (indices alone).
    """
    if layout == "npy":
        write_atomically(path, lambda file: np.save(file, indices))
        return
    if layout == "knns":
        arrays = {"knns": indices, "dists": 1 - similarities, "fingerprint": np.array(fingerprint)}
        write_atomically(path, lambda file: np.savez(file, **arrays))
        return

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            with archive.open("data.npy", "w", force_zip64=True) as member:
                _write_data(member, indices, similarities)
            with archive.open("fingerprint.npy", "w") as member:
                npy.write_array(member, np.array(fingerprint))

    write_atomically(path, write)


def _read_data(file: BinaryIO) -> tuple[np.ndarray, np.ndarray]:
    """``indices`` (N, K) int32 and ``similarities`` float32 of an ``.npy`` array (N, 2, K), never whole in memory."""
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
    shape, columns_first, dtype = read_header(file)
    if len(shape) != 3 or shape[1] != 2:
        raise ValueError(f"'data' has shape {shape}, expected (N, 2, K)")
    num_faces, _, k = shape
    indices, similarities = np.empty((num_faces, k), dtype=np.int32), np.empty((num_faces, k), dtype=np.float32)
    step = num_faces if columns_first else ROWS
    for start in range(0, num_faces, max(step, 1)):
        rows = slice(start, min(start + step, num_faces))
        count = (rows.stop - start) * 2 * k
        data = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
        data = data.reshape((-1, 2, k), order="F" if columns_first else "C")
        indices[rows], similarities[rows] = data[:, 0], 1 - data[:, 1]
    file.read(1)  # at its end, an archive compares the checksum
    return indices, similarities


def _write_data(file: BinaryIO, indices: np.ndarray, similarities: np.ndarray) -> None:
    """Write what `_read_data` reads."""
    num_faces, k = indices.shape
    dtype = np.dtype(np.float32 if num_faces < 2**24 else np.float64)  # float32 holds integers exactly up to 2^24
    npy.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": (num_faces, 2, k)})
    for start in range(0, num_faces, ROWS):
        rows = slice(start, start + ROWS)
        file.write(np.stack([indices[rows].astype(dtype), 1 - similarities[rows].astype(dtype)], axis=1))


def _load_npy(path: Path, mmap_mode: str | None = None) -> np.ndarray:
    try:
        return np.load(path, mmap_mode, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a readable .npy file: {error}.") from None


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Call ``write`` on a temporary file in the same folder, then rename it to ``path``: no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path) as temporary:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)


@contextmanager
def _temporary(path: Path) -> Iterator[str]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        os.chmod(name, 0o644)  # mkstemp's 0600 would lock out the user's colleagues
        yield name
    finally:
        Path(name).unlink(missing_ok=True)
