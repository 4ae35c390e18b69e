"""The kNN graph of a part: build with FAISS, keep, slice, check."""

import hashlib
import re
import time
from pathlib import Path

import numpy as np

from lcde.data.formats import REBUILD, read_knn, write_knn
from lcde.errors import InputError

BLOCK = 65_536  # rows searched at a time, so that a progress display moves and memory stays bounded


def knn_graph(features: np.ndarray, k: int, folder: Path, source: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Read the kNN graph of ``features`` from ``folder``, or build it and keep it there.

    The file of the smallest K' >= ``k`` serves, sliced. Returns ``indices`` (N, k) int32 with the face itself in
    column 0, ``similarities`` (N, k) float32 descending, and the seconds spent building (0 when read).
    Raises `InputError` where ``k`` >= N or a stored graph was built from other features.
    """
    require_k(k, len(features), source)
    stored = {
        int(match[1]): path
        for path in folder.glob("*.npz")
        if (match := re.fullmatch(r"faiss_k_(\d+)\.npz", path.name))
    }
    usable = [stored_k for stored_k in stored if stored_k >= k]
    if usable:
        path = stored[min(usable)]
        indices, similarities, fingerprint = read_knn(path)
        check_graph(features, indices, similarities, fingerprint, str(path))
        indices, similarities = order_neighbours(indices, similarities)
        return indices[:, :k].copy(), similarities[:, :k].copy(), 0.0
    start = time.perf_counter()
    indices, similarities = build_knn(features, k)
    seconds = time.perf_counter() - start
    write_knn(folder / f"faiss_k_{k}.npz", indices, similarities, fingerprint_of(features))
    return indices, similarities, seconds


def require_k(k: int, num_faces: int, source: str) -> None:
    """Raise `InputError` unless 2 <= ``k`` < N."""
    if not 2 <= k < num_faces:
        raise InputError(
            f"dataset.k={k} must lie between 2 and {num_faces - 1}, below the {num_faces} faces of {source}."
        )


def build_knn(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact ``k`` nearest neighbours by cosine similarity of unit ``features`` (N, D), the face itself first.

    Returns ``indices`` (N, k) int32 and ``similarities`` (N, k) float32, descending.
    """
    import faiss

    index = faiss.IndexFlatIP(features.shape[1])
    if getattr(faiss, "get_num_gpus", lambda: 0)():
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(features)
    indices = np.empty((len(features), k), dtype=np.int32)
    similarities = np.empty((len(features), k), dtype=np.float32)
    for start in range(0, len(features), BLOCK):
        rows = slice(start, start + BLOCK)
        similarities[rows], indices[rows] = index.search(features[rows], k)
    return order_neighbours(indices, similarities)


def order_neighbours(indices: np.ndarray, similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort each row by descending similarity, equal ones in file order, and put the face itself in column 0.

    A face that its own row lacks (many duplicates push it out) takes the last neighbour's place, with similarity 1.
    """
    order = np.argsort(-similarities, axis=1, kind="stable")
    own = np.arange(len(indices), dtype=indices.dtype)[:, None]
    found = np.take_along_axis(indices, order, axis=1) == own
    missing = ~found.any(axis=1)
    position = np.where(missing, indices.shape[1] - 1, found.argmax(axis=1))[:, None]
    columns = np.arange(indices.shape[1])
    source = np.where(columns == 0, position, columns - (columns <= position))
    order = np.take_along_axis(order, source, axis=1)
    indices = np.take_along_axis(indices, order, axis=1)
    similarities = np.take_along_axis(similarities, order, axis=1)
    indices[missing, 0], similarities[missing, 0] = own[missing, 0], 1.0
    return indices, similarities


def check_graph(
    features: np.ndarray, indices: np.ndarray, similarities: np.ndarray, fingerprint: str, source: str
) -> None:
    """Raise `InputError` unless the graph fits ``features``: size, index range, fingerprint, sampled similarities."""
    if len(indices) != len(features):
        raise InputError(f"{source} has {len(indices)} rows, but there are {len(features)} faces; {REBUILD}")
    if indices.min() < 0 or indices.max() >= len(features):
        raise InputError(f"{source} names neighbour {indices.max()}, but there are {len(features)} faces; {REBUILD}")
    if fingerprint and fingerprint != fingerprint_of(features):
        raise InputError(f"{source} was built from other features than those it stands beside; {REBUILD}")
    rows = np.linspace(0, len(features) - 1, 100).astype(int)
    expected = np.einsum("nkd,nd->nk", features[indices[rows]], features[rows])
    error = np.abs(expected - similarities[rows]).max()
    if not error < 0.01:  # NaN fails too; half-precision files stay below
        raise InputError(f"{source} has similarities up to {error:.3f} off those of the features; {REBUILD}")


def fingerprint_of(features: np.ndarray) -> str:
    """A hash of the values of ``features``, stored with the graph built from them."""
    return hashlib.blake2b(np.ascontiguousarray(features).data, digest_size=16).hexdigest()
