"""The kNN graph of a part: build, keep, slice, check."""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from lcde.clustering.edges import edge_similarities
from lcde.data.formats import REBUILD, npy_shape, read_knn, write_knn
from lcde.data.search import choose_search
from lcde.errors import InputError
from lcde.progress import track

BLOCK = 16_384  # rows searched at a time, so that the progress display moves
CHUNK = 4_096  # rows whose neighbours are ordered at a time


@dataclass(frozen=True)
class GraphFiles:
    """Where a part's kNN graph is kept.

    folder:   holds the files, one for each K that was built
    pattern:  file name with ``{k}`` in K's place; without it, the one file there can be, of whatever K
    layout:   what `write_knn` calls it
    """

    folder: Path
    pattern: str
    layout: str

    def stored(self) -> dict[int, Path]:
        """The files there are, by their K."""
        if "{k}" not in self.pattern:
            path = self.folder / self.pattern
            return {(0, *npy_shape(path))[-1]: path} if path.is_file() else {}
        name = re.compile(re.escape(self.pattern).replace(re.escape("{k}"), r"(\d+)"))
        return {int(match[1]): path for path in self.folder.glob("*") if (match := name.fullmatch(path.name))}

    def path(self, k: int) -> Path:
        return self.folder / self.pattern.format(k=k)


def knn_graph(
    features: np.ndarray, k: int, files: GraphFiles, source: str, graph_k: int | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Read the kNN graph of ``features`` (N, D), or build it and keep it; of several processes, only one builds.

    The file of the smallest K' >= ``k`` serves, sliced; where there is none, the graph that is built and kept has
    ``graph_k`` neighbours, if that is more, but N - 1 at most. Returns ``indices`` (N, k) int32 with the face itself
    in column 0, ``similarities`` (N, k) float32 descending, and the seconds spent building (0 when read).
    Raises `InputError` where ``k`` >= N, or a stored graph was built from other features or is in the way.
    """
    require_k(k, len(features), source)
    if (graph := stored_graph(features, k, files)) is not None:
        return *_first_columns(*graph, k), 0.0
    graph_k = max(k, min(graph_k or k, len(features) - 1))
    path = files.path(graph_k)
    with _alone(path):
        if (graph := stored_graph(features, k, files)) is not None:  # another process built it meanwhile
            return *_first_columns(*graph, k), 0.0
        start = time.perf_counter()
        indices, similarities = build_knn(features, graph_k)
        seconds = time.perf_counter() - start
        write_knn(path, indices, similarities, fingerprint_of(features), files.layout)
    return indices[:, :k].copy(), similarities[:, :k].copy(), seconds


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of ``path``, a file beside it, for which other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with FileLock(lock):
            yield
    finally:  # one that waits for the file removed finds the graph there, so nothing breaks
        with suppress(OSError):  # Windows removes no file that another process has open
            lock.unlink()


def stored_graph(features: np.ndarray, k: int, files: GraphFiles) -> tuple[np.ndarray, np.ndarray] | None:
    """``indices`` and ``similarities`` (N, K') of the smallest K' >= ``k`` on file, in its order, None without one.

    Raises `InputError` where it does not fit ``features`` (N, D), or a smaller one is in the way.
    """
    stored = files.stored()
    usable = [stored_k for stored_k in stored if stored_k >= k]
    if not usable:
        if stored and "{k}" not in files.pattern:  # the layout has no room for another
            raise InputError(f"{files.path(k)} holds {max(stored)} neighbours, fewer than dataset.k={k}; {REBUILD}")
        return None
    path = stored[min(usable)]
    indices, similarities, fingerprint = read_knn(path)
    require_indices(features, indices, k, str(path))
    if similarities is None:
        similarities = edge_similarities(features, indices)
        require_neighbours(features, indices, similarities, str(path))
    else:
        require_similarities(features, indices, similarities, fingerprint, str(path))
    return indices, similarities


def _first_columns(indices: np.ndarray, similarities: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` nearest of the neighbours (N, K'), in order."""
    indices, similarities = order_neighbours(indices, similarities)
    return np.ascontiguousarray(indices[:, :k]), np.ascontiguousarray(similarities[:, :k])


def require_k(k: int, num_faces: int, source: str) -> None:
    """Raise `InputError` unless 2 <= ``k`` < N."""
    if not 2 <= k < num_faces:
        raise InputError(
            f"dataset.k={k} must lie between 2 and {num_faces - 1}, below the {num_faces} faces of {source}."
        )


def build_knn(features: np.ndarray, k: int, first_row: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` nearest neighbours by cosine similarity of unit ``features`` (N, D), the face itself first.

    Exact, but for millions of faces on a CPU (`lcde.data.search`). Returns ``indices`` (N - first_row, k) int32 among
    all N faces and ``similarities`` float32, descending, for the faces from ``first_row`` on.
    """
    queries = features[first_row:]
    indices = np.empty((len(queries), k), dtype=np.int32)
    similarities = np.empty((len(queries), k), dtype=np.float32)
    for start, *found in _search(queries, features, k):
        rows = slice(start, start + len(found[0]))
        indices[rows], similarities[rows] = order_neighbours(*found, first_row + start)
    return indices, similarities


def extend_knn(
    features: np.ndarray, indices: np.ndarray, similarities: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The graph of unit ``features`` (N + n, D), as of `build_knn`, from that of the first N.

    ``indices`` and ``similarities`` (N, K), in order, have all N faces as neighbours where N < ``k``. Only new faces
    are compared with all.
    """
    num_known, width = len(indices), min(k, len(features))
    all_indices = np.zeros((len(features), width), dtype=np.int32)
    all_similarities = np.full(all_indices.shape, -np.inf, dtype=np.float32)
    known = slice(num_known), slice(indices.shape[1])
    all_indices[known], all_similarities[known] = indices, similarities
    new = features[num_known:]
    for start, found, found_similarities in _search(features[:num_known], new, min(width, len(new))):
        farthest = all_similarities[start : start + len(found), -1]
        closer = np.flatnonzero(found_similarities[:, 0] > farthest)
        rows = start + closer
        candidates = np.concatenate([all_indices[rows], found[closer] + np.int32(num_known)], axis=1)
        values = np.concatenate([all_similarities[rows], found_similarities[closer]], axis=1)
        nearest = 1 + np.argsort(-values[:, 1:], axis=1, kind="stable")[:, : width - 1]
        all_indices[rows, 1:] = np.take_along_axis(candidates, nearest, axis=1)
        all_similarities[rows, 1:] = np.take_along_axis(values, nearest, axis=1)
    all_indices[num_known:], all_similarities[num_known:] = build_knn(features, width, num_known)
    return all_indices, all_similarities


def _search(queries: np.ndarray, features: np.ndarray, k: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The faces nearest to ``queries`` (Q, D), a block of them at a time.

    Yields the number of its first query, ``indices`` (B, k) int32 and ``similarities`` (B, k) float32, descending.
    """
    search = choose_search(features, k, len(queries))
    starts = range(0, len(queries), BLOCK)
    for start in track(starts, "kNN graph", len(starts) > 1):
        similarities, indices = search(queries[start : start + BLOCK])
        yield start, indices.astype(np.int32), similarities


def order_neighbours(
    indices: np.ndarray, similarities: np.ndarray, first_row: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Sort each row by descending similarity, equal ones in file order, and put the face itself in column 0.

    The first row is that of face ``first_row``. A face that its own row lacks (many duplicates push it out) takes the
    last neighbour's place, with similarity 1.
    """
    ordered = np.empty_like(indices), np.empty_like(similarities)
    for start in range(0, len(indices), CHUNK):
        rows = slice(start, start + CHUNK)
        ordered[0][rows], ordered[1][rows] = _order_rows(indices[rows], similarities[rows], first_row + start)
    return ordered


def _order_rows(indices: np.ndarray, similarities: np.ndarray, first_row: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-similarities, axis=1, kind="stable")
    own = np.arange(first_row, first_row + len(indices), dtype=indices.dtype)[:, None]
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


def require_indices(features: np.ndarray, indices: np.ndarray, k: int, source: str) -> None:
    """Raise `InputError` unless ``indices`` has a row for each face, of ``k`` different faces or more."""
    if indices.shape[1] < k:
        raise InputError(f"{source} holds {indices.shape[1]} neighbours, fewer than dataset.k={k}; {REBUILD}")
    if len(indices) != len(features):
        raise InputError(f"{source} has {len(indices)} rows, but there are {len(features)} faces; {REBUILD}")
    if indices.min() < 0 or indices.max() >= len(features):
        bad = indices.max() if indices.max() >= len(features) else indices.min()
        raise InputError(f"{source} names neighbour {bad}, but there are {len(features)} faces; {REBUILD}")
    in_order = np.sort(indices[_sample(len(features))], axis=1)
    if (in_order[:, 1:] == in_order[:, :-1]).any():
        raise InputError(f"{source} has rows that name one neighbour twice; {REBUILD}")


def require_similarities(
    features: np.ndarray, indices: np.ndarray, similarities: np.ndarray, fingerprint: str, source: str
) -> None:
    """Raise `InputError` unless the fingerprint, if there is one, and similarities of sampled rows fit ``features``."""
    if fingerprint and fingerprint != fingerprint_of(features):
        raise InputError(f"{source} was built from other features than those it stands beside; {REBUILD}")
    rows = _sample(len(features))
    expected = np.einsum("nkd,nd->nk", features[indices[rows]], features[rows])
    error = np.abs(expected - similarities[rows]).max()
    if not error < 0.01:  # NaN fails too; half-precision files stay below
        raise InputError(f"{source} has similarities up to {error:.3f} off those of the features; {REBUILD}")


def require_neighbours(features: np.ndarray, indices: np.ndarray, similarities: np.ndarray, source: str) -> None:
    """Raise `InputError` unless half of the neighbours of sampled rows are among the K nearest by exact search.

    For files without similarities; approximate graphs pass, those of other features do not.
    """
    rows = _sample(len(features))
    k = indices.shape[1]
    kth_best = -np.partition(-(features[rows] @ features.T), k - 1, axis=1)[:, k - 1]
    share = (similarities[rows] >= kth_best[:, None] - 1e-5).mean()
    if share < 0.5:
        raise InputError(
            f"only {share:.0%} of the neighbours in {source} are nearest neighbours by the features; {REBUILD}"
        )


def _sample(num_faces: int) -> np.ndarray:
    return np.unique(np.linspace(0, num_faces - 1, 100).astype(int))


def fingerprint_of(features: np.ndarray) -> str:
    """A hash of the values of ``features``, stored with the graph built from them."""
    return hashlib.blake2b(np.ascontiguousarray(features).data, digest_size=16).hexdigest()
