"""kNN graphs: build, extend, store, slice and check them."""

import hashlib
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from filelock import Timeout

from lcde.data.formats import REBUILD, as_graph, read_knn, write_knn
from lcde.data.gallery import Gallery, KNNGraph, row_blocks
from lcde.data.search import Search, choose_search, edge_similarities
from lcde.errors import InputError
from lcde.files import require_writable, shared_lock
from lcde.progress import counter, track

SEARCHED_ROWS = 16_384  # at a time, so that the progress display moves
SHARD_ROWS = 4 * SEARCHED_ROWS  # that one process searches and stores; a job that is killed loses at most these
WAIT = 1.0  # seconds until a process looks again at the rows that others search
CORRECT = "correct the graph, or give none to have one built."


@dataclass(frozen=True)
class GraphFiles:
    """Where the kNN graphs of a gallery are stored.

    Attributes
    ----------
    folder : Path
    pattern : str
        File name with ``{k}`` in K's place; without it, there is one file, which must do for every K.
    layout : str
        Of `lcde.data.formats.write_knn`.
    """

    folder: Path
    pattern: str
    layout: str

    def stored(self, k: int) -> Path | None:
        """The existing file of the smallest K' >= ``k``, or the only one; None if there is none."""
        if "{k}" not in self.pattern:
            return path if (path := self.folder / self.pattern).is_file() else None
        name = re.compile(re.escape(self.pattern).replace(re.escape("{k}"), r"(\d+)"))
        found = [(int(match[1]), path) for path in self.folder.glob("*") if (match := name.fullmatch(path.name))]
        return min(((stored_k, path) for stored_k, path in found if stored_k >= k), default=(k, None))[1]


def knn_graph(
    features: np.ndarray, k: int, files: GraphFiles, source: str, graph_k: int | None = None
) -> tuple[KNNGraph, float]:
    """Read the kNN graph of ``features``, or build and store it.

    Processes that ask for the same graph at the same time, on one machine or on several that share the folder, search
    some of the rows each. Rows are stored as they are found, so that a job that was killed goes on from there.

    Parameters
    ----------
    features : (N, D) float32
        Unit L2 norm.
    k : int
        K; the stored graph with the smallest sufficient K is read and sliced.
    files : GraphFiles
    source : str
        Name of the gallery, for messages.
    graph_k : int, optional
        K of the graph that is built and stored, where that is more than ``k``; N - 1 at most.

    Returns
    -------
    KNNGraph
    float
        Seconds that building took, 0 if the graph was read.

    Raises
    ------
    InputError
        Where ``k`` >= N, the stored graph was built from other features, or the layout has room for one graph only
        and the stored one is smaller.
    """
    require_k(k, len(features), source)
    graph, seconds = stored_graph(features, k, files), 0.0
    if graph is None:
        graph_k = max(k, min(graph_k or k, len(features) - 1))
        path = files.folder / files.pattern.format(k=graph_k)
        require_writable(path.parent)
        start, fingerprint = time.perf_counter(), fingerprint_of(features)
        shards = _search_together(features, graph_k, path, fingerprint)
        lock = path.with_name(f".{path.name}.lock")
        with shared_lock(lock):
            graph = stored_graph(features, k, files)  # another process may have stored it meanwhile
            if graph is None:
                pieces = [KNNGraph(*read_knn(shard)[:2]) for shard in shards]  # type: ignore[arg-type]
                write_knn(path, pieces or build_knn(features, graph_k), fingerprint, files.layout)
                del pieces  # shards are mapped, and Windows deletes no such file
                graph, seconds = stored_graph(features, k, files), time.perf_counter() - start
                beside = [file for file in path.parent.iterdir() if f".{path.name}." in file.name]
                _delete(file for file in beside if file != lock)  # shards, and files of killed jobs
        assert graph is not None
        _delete([lock])  # who waits for it finds the graph stored
    return order_neighbours(graph, k=k), seconds


def _search_together(features: np.ndarray, k: int, path: Path, fingerprint: str) -> list[Path]:
    """Search rows that no other process searches, until all rows of the graph ``path`` are stored beside it.

    Returns
    -------
    list of Path
        The files that hold the rows, in order, which are gone where another process has written ``path``; none for
        faces that are as few as one file holds.
    """
    blocks = list(row_blocks(len(features), size=SHARD_ROWS))
    if len(blocks) == 1:
        return []
    missing = {path.with_name(f".{path.name}.{fingerprint[:16]}-{k}-{rows.start}.npz"): rows for rows in blocks}
    shards, search = list(missing), cache(lambda: choose_search(features, k, len(features)))
    with counter("kNN graph", len(features)) as advance:
        while missing and not path.exists():
            for shard, rows in list(missing.items()):
                with suppress(Timeout), shared_lock(Path(f"{shard}.lock"), timeout=0):
                    if not (shard.exists() or path.exists()):  # in this order: shards are deleted after `path` is there
                        graph = _neighbours(search(), features, k, rows, shown=False)
                        write_knn(shard, graph, fingerprint, "arrays")
                    del missing[shard]
                    advance(rows.stop - rows.start)
            if missing:
                time.sleep(WAIT)
    if path.exists():  # who wrote it has deleted these, but perhaps before this process asked for the last
        _delete(Path(f"{shard}.lock") for shard in shards)
    return shards


def _delete(files: Iterable[Path]) -> None:
    """Delete ``files``; Windows keeps those that others have open."""
    for file in files:
        with suppress(OSError):
            file.unlink()


def stored_graph(features: np.ndarray, k: int, files: GraphFiles) -> KNNGraph | None:
    """The stored graph with the smallest K' >= ``k``, columns in the file's order; None if there is none.

    Raises
    ------
    InputError
        Where the graph does not fit ``features`` (N, D), or the layout has room for one graph only and that is smaller.
    """
    if (path := files.stored(k)) is None:
        return None
    graph, rows = read_knn(path), np.unique(np.linspace(0, len(features) - 1, 100).astype(int))  # a sample
    _require_fit(graph.indices, len(features), k, str(path), REBUILD, rows)
    if graph.fingerprint and graph.fingerprint != fingerprint_of(features):
        raise InputError(f"{path} was built from other features than those it stands beside; {REBUILD}")
    if graph.similarities is None:
        similarities, width = edge_similarities(features, graph.indices), graph.indices.shape[1]
        farthest = np.partition(features[rows] @ features.T, -width, axis=1)[:, -width]
        share = (similarities[rows] >= farthest[:, None] - 1e-5).mean()
        if share < 0.5:  # approximate graphs pass, those of other features do not
            raise InputError(f"only {share:.0%} of the neighbours in {path} are nearest by the features; {REBUILD}")
        return KNNGraph(graph.indices, similarities)
    expected = np.einsum("nkd,nd->nk", features[graph.indices[rows]], features[rows])
    _require_close(graph.similarities[rows], expected, str(path), REBUILD)
    return KNNGraph(graph.indices, graph.similarities)


def own_graph(
    indices: np.ndarray, similarities: np.ndarray | None, features: np.ndarray, k: int, source: str
) -> KNNGraph:
    """Check a kNN graph that the user gives, and bring it into the form of `KNNGraph`.

    Neighbours may come in any order and need not be the nearest ones (an approximate or filtered graph). Similarities
    are computed from the features; given ones are compared with them.

    Parameters
    ----------
    indices : (N, K') integers
        Neighbours of each face, the face itself among them. A row that lacks it gets it in place of the least similar
        neighbour, if most rows have it.
    similarities : (N, K') float, optional
        Cosine similarities.
    features : (N, D) float32
        Unit L2 norm.
    k : int
        K, at most K'; of fewer than K faces, all are neighbours.
    source : str
        File or argument, for messages.

    Returns
    -------
    KNNGraph
        The K most similar of the given neighbours.

    Raises
    ------
    InputError
        On other shapes, neighbours out of range or named twice, graphs without the faces themselves, and similarities
        that differ from those of the features by 0.01 or more.
    """
    try:
        given = as_graph(np.asarray(indices), None if similarities is None else np.asarray(similarities))
    except ValueError as error:
        raise InputError(f"{source} is no kNN graph: {error}; {CORRECT}") from None
    num_faces, width = len(features), min(k, len(features))
    _require_fit(given.indices, num_faces, width, source, CORRECT, np.arange(num_faces))
    missing = num_faces - np.count_nonzero(given.indices == np.arange(num_faces)[:, None])
    if missing > num_faces / 2:
        raise InputError(f"{source}: {missing} of {num_faces} faces are not among their own neighbours; {CORRECT}")
    graph = KNNGraph(given.indices, edge_similarities(features, given.indices))
    if given.similarities is not None:
        _require_close(given.similarities, graph.similarities, source, CORRECT)
    return order_neighbours(graph, k=width)


def require_k(k: int, num_faces: int, source: str) -> None:
    """Raise `InputError` unless 2 <= ``k`` < N."""
    if not 2 <= k < num_faces:
        raise InputError(f"dataset.k={k} must lie between 2 and {num_faces - 1}, for {num_faces} faces of {source}.")


def build_knn(features: np.ndarray, k: int, first_row: int = 0) -> KNNGraph:
    """Search the ``k`` nearest neighbours by cosine similarity, the face itself first.

    Exact, except for millions of faces on a CPU (see `lcde.data.search`).

    Parameters
    ----------
    features : (N, D) float32
        Unit L2 norm.
    k : int
        K <= N.
    first_row : int
        First face whose neighbours, among all N, are searched.

    Returns
    -------
    KNNGraph
        Of N - ``first_row`` rows.
    """
    rows = slice(first_row, len(features))
    return _neighbours(choose_search(features, k, len(features) - first_row), features, k, rows)


def _neighbours(search: Search, features: np.ndarray, k: int, rows: slice, shown: bool = True) -> KNNGraph:
    """The rows ``rows`` of the kNN graph of ``features``, by a ``search`` among them for ``k`` neighbours."""
    queries = features[rows]
    indices = np.empty((len(queries), k), dtype=np.int32)
    similarities = np.empty((len(queries), k), dtype=np.float32)
    for block, found in _search(search, queries, shown):
        ordered = order_neighbours(found, rows.start + block.start)
        indices[block], similarities[block] = ordered.indices, ordered.similarities
    return KNNGraph(indices, similarities)


def build_gallery(name: str, features: np.ndarray, labels_true: np.ndarray, k: int, held_out: bool) -> Gallery:
    """A gallery of unit ``features`` (N, D) float32 with the kNN graph of `build_knn`, and the time that took."""
    start = time.perf_counter()
    graph = build_knn(features, k)
    return Gallery(name, features, graph, labels_true, held_out=held_out, knn_seconds=time.perf_counter() - start)


def with_reference(gallery: Gallery, reference: np.ndarray, k: int, source: str) -> Gallery:
    """The ``gallery`` to be clustered together with other people's unit features ``reference`` (R, D) float32.

    Parameters
    ----------
    gallery : Gallery
        With a graph of ``k`` neighbours, or of all faces where they are fewer.
    reference : (R, D) float32
    k : int
        Neighbours in the graph of all faces.
    source : str
        What the reference is called in a message.

    Raises
    ------
    InputError
        Where the widths differ.
    """
    width, dim = reference.shape[1], gallery.features.shape[1]
    if width != dim:
        raise InputError(f"{source} has a width of {width}, the faces to cluster one of {dim}; use one embedder.")
    return replace(gallery, union=extended(gallery, reference, k))


def extended(gallery: Gallery, features: np.ndarray, k: int) -> Gallery:
    """The faces of ``gallery``, then those of unit ``features`` (n, D), with the graph of `extend_knn`."""
    union = np.concatenate([gallery.features, features])
    return Gallery(gallery.name, union, extend_knn(union, gallery.graph, k))


def extend_knn(features: np.ndarray, graph: KNNGraph, k: int) -> KNNGraph:
    """Extend the graph of the first N of N + n faces to all; only new faces are compared with all.

    Parameters
    ----------
    features : (N + n, D) float32
        Unit L2 norm.
    graph : KNNGraph
        Of the first N, with ``k`` neighbours, or all N faces where they are fewer.
    k : int
        K; N + n where there are fewer faces.

    Returns
    -------
    KNNGraph
        That of `build_knn` for all faces.
    """
    num_known, width = len(graph), min(k, len(features))
    indices = np.zeros((len(features), width), dtype=np.int32)
    similarities = np.full(indices.shape, -np.inf, dtype=np.float32)
    known = slice(num_known), slice(graph.k)
    indices[known], similarities[known] = graph.indices, graph.similarities
    new = features[num_known:]
    queries, nearest_new = features[:num_known], min(width, len(new))
    for block, found in _search(choose_search(new, nearest_new, num_known), queries):
        closer = np.flatnonzero(found.similarities[:, 0] > similarities[block, -1])
        rows = block.start + closer
        candidates = np.concatenate([indices[rows], found.indices[closer] + np.int32(num_known)], axis=1)
        values = np.concatenate([similarities[rows], found.similarities[closer]], axis=1)
        nearest = 1 + np.argsort(-values[:, 1:], axis=1, kind="stable")[:, : width - 1]
        indices[rows, 1:] = np.take_along_axis(candidates, nearest, axis=1)
        similarities[rows, 1:] = np.take_along_axis(values, nearest, axis=1)
    added = build_knn(features, width, num_known)
    indices[num_known:], similarities[num_known:] = added.indices, added.similarities
    return KNNGraph(indices, similarities)


def _search(search: Search, queries: np.ndarray, shown: bool = True) -> Iterator[tuple[slice, KNNGraph]]:
    """Yield the nearest faces of ``queries`` (Q, D), block by block: which queries, neighbours by similarity."""
    blocks = list(row_blocks(len(queries), size=SEARCHED_ROWS))
    for rows in track(blocks, "kNN graph", shown and len(blocks) > 1):
        indices, similarities = search(queries[rows])
        yield rows, KNNGraph(indices.astype(np.int32), similarities)


def order_neighbours(graph: KNNGraph, first_row: int = 0, k: int | None = None) -> KNNGraph:
    """Sort each row by descending similarity, ties in given order, with the face itself in column 0.

    A graph whose rows are all like that already is returned as it is, in the file where it is mapped.

    If the face itself is missing (many duplicates displaced it), it replaces the last neighbour, with similarity 1.

    Parameters
    ----------
    graph : KNNGraph
    first_row : int
        Face that row 0 is of.
    k : int, optional
        Neighbours to keep, the nearest ones; all by default.
    """
    shape = len(graph), k or graph.k
    if shape[1] == graph.k and _in_order(graph, first_row):
        return graph
    indices, similarities = np.empty(shape, graph.indices.dtype), np.empty(shape, graph.similarities.dtype)
    for rows in row_blocks(len(graph)):
        ordered = _order_rows(graph.indices[rows], graph.similarities[rows], first_row + rows.start)
        indices[rows], similarities[rows] = (array[:, : shape[1]] for array in ordered)
    return KNNGraph(indices, similarities)


def _in_order(graph: KNNGraph, first_row: int) -> bool:
    for rows in row_blocks(len(graph)):
        own = graph.indices[rows, 0] == np.arange(first_row + rows.start, first_row + rows.stop)
        if not (own.all() and (np.diff(graph.similarities[rows, 1:]) <= 0).all()):
            return False
    return True


def _order_rows(indices: np.ndarray, similarities: np.ndarray, first_row: int) -> tuple[np.ndarray, np.ndarray]:
    own = np.arange(first_row, first_row + len(indices), dtype=indices.dtype)[:, None]
    is_own = indices == own
    order = np.argsort(np.where(is_own, -np.inf, -similarities), axis=1, kind="stable")
    missing = ~is_own.any(axis=1)
    order[missing] = np.roll(order[missing], 1, axis=1)  # the last neighbour makes room
    indices, similarities = (np.take_along_axis(array, order, axis=1) for array in (indices, similarities))
    indices[missing, 0], similarities[missing, 0] = own[missing, 0], 1.0
    return indices, similarities


def _require_fit(indices: np.ndarray, num_faces: int, k: int, source: str, remedy: str, rows: np.ndarray) -> None:
    """Raise `InputError` unless each face has ``k`` neighbours or more, in range and, in ``rows``, distinct ones."""
    if indices.shape[1] < k:
        raise InputError(f"{source} holds {indices.shape[1]} neighbours, fewer than k={k}; {remedy}")
    if len(indices) != num_faces:
        raise InputError(f"{source} has {len(indices)} rows, but there are {num_faces} faces; {remedy}")
    for bad in (indices.min(), indices.max()):
        if not 0 <= bad < num_faces:
            raise InputError(f"{source} names neighbour {bad}, but there are {num_faces} faces; {remedy}")
    for block in row_blocks(len(rows)):
        in_order = np.sort(indices[rows[block]], axis=1)
        if (in_order[:, 1:] == in_order[:, :-1]).any():
            raise InputError(f"{source} has rows that name one neighbour twice; {remedy}")


def _require_close(similarities: np.ndarray, expected: np.ndarray, source: str, remedy: str) -> None:
    error = np.abs(expected - similarities).max()
    if not error < 0.01:  # NaN fails too; half-precision files stay below
        raise InputError(f"{source} has similarities up to {error:.3f} off those of the features; {remedy}")


def fingerprint_of(features: np.ndarray) -> str:
    """A hash of the values of ``features``, stored with the graph built from them."""
    return hashlib.blake2b(np.ascontiguousarray(features).data, digest_size=16).hexdigest()
