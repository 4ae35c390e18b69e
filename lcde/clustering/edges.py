"""Edges of the kNN graph, and which of them may join clusters: density edges E_d and similar edges E_s."""

from collections.abc import Iterator

import numpy as np

from lcde.data.gallery import KNNGraph, row_blocks


def official_similarity_threshold(similarities: np.ndarray) -> float:
    """Mean similarity to the 3 nearest neighbours over the whole set (N, K), the published rule for τ; 1 if alone."""
    return float(np.mean(similarities[:, 1:4])) if similarities.shape[1] > 1 else 1.0


def edges_above(graph: KNNGraph, threshold: float, first_row: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Edges (M, 2) int64 of similarity ``threshold`` or more, from faces ``first_row`` on, and similarities (M,).

    An edge that occurs in the rows of both its ends comes twice.
    """
    none = np.empty((0, 2), dtype=np.int64), graph.similarities[:0, 0]
    edges, similarities = zip(none, *edge_blocks(graph, threshold, first_row), strict=True)
    return np.concatenate(edges), np.concatenate(similarities)


def edge_blocks(graph: KNNGraph, threshold: float, first_row: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The edges of `edges_above`, those of some faces at a time."""
    for rows in row_blocks(len(graph), first_row):
        indices, similarities = graph.indices[rows], graph.similarities[rows]
        above = similarities >= threshold
        above[:, 0] = False
        place = np.flatnonzero(above)  # several times faster than nonzero of both axes
        edges = np.stack([place // graph.k + rows.start, indices.ravel()[place]], axis=1)
        yield edges, similarities.ravel()[place]


def select_edges(
    graph: KNNGraph, connectivity: np.ndarray, density: np.ndarray, similarity_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Density edges and similar edges of a kNN graph (paper, section 3.3).

    Parameters
    ----------
    graph : KNNGraph
    connectivity : (N, K) float32
        Symmetrised.
    density : (N,) float64
    similarity_threshold : float

    Returns
    -------
    edges_density : (M, 2) int64
        From each face to the neighbour with the largest s·c among the denser ones, ties to the lowest position; a
        face without a denser neighbour of s·c > 0 has none.
    edges_similar : (L, 2) int64
        All other edges to a denser neighbour with s·c >= ``similarity_threshold``; undirected, sorted and unique.
    """
    edges_density, keys = [], []
    for rows in row_blocks(len(graph)):
        indices = graph.indices[rows]
        denser = density[indices] > density[rows, None]
        weight = np.where(denser, graph.similarities[rows].astype(np.float64) * connectivity[rows], 0)
        best = weight.argmax(axis=1)  # column 0, never denser than itself, where there is none
        joined = np.flatnonzero(best)
        edges_density.append(np.stack([joined + rows.start, indices[joined, best[joined]]], axis=1))
        similar = denser & (weight >= similarity_threshold)
        similar[np.arange(len(best)), best] = False
        faces, columns = np.nonzero(similar)
        others = indices[faces, columns]
        faces += rows.start
        keys.append(np.minimum(faces, others) << 32 | np.maximum(faces, others))
    # A kNN edge leads to the denser end only, so no edge occurs in both directions and sorting leaves no repeats.
    key = np.sort(np.concatenate(keys))
    return np.concatenate(edges_density), np.stack([key >> 32, key & 0xFFFF_FFFF], axis=1)


def peak_links(graph: KNNGraph, height: np.ndarray) -> KNNGraph:
    """The edge from each face to its first neighbour that is strictly higher, by ``height`` (N,); see `one_link`."""
    return one_link(graph, (height[graph.indices] > height[:, None]).argmax(axis=1))


def one_link(graph: KNNGraph, columns: np.ndarray) -> KNNGraph:
    """The edge of each face in one of the ``columns`` (N,) of ``graph``, as a graph of K = 2.

    The edge of a face whose column is 0 leads to itself, with similarity 0: it joins nothing.
    """
    both = np.stack([np.zeros_like(columns), columns], axis=1)
    similarities = np.take_along_axis(graph.similarities, both, axis=1)
    similarities[columns == 0, 1] = 0
    return KNNGraph(np.take_along_axis(graph.indices, both, axis=1), similarities)


def values_of_edges(values: np.ndarray, edges: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Values (M,) of kNN edges ``edges`` (M, 2), taken from ``values`` (N, K) beside ``indices`` (N, K)."""
    result = np.empty(len(edges), dtype=values.dtype)
    for rows in row_blocks(len(edges)):
        source, target = edges[rows].T
        result[rows] = values[source, (indices[source] == target[:, None]).argmax(axis=1)]
    return result


def distinct_pairs(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair (M, 2) of two different numbers below 2^32 once, the lower first (P, 2), and where it stood (P,)."""
    first, second = pairs.T
    apart = np.flatnonzero(first != second)
    key = (np.minimum(first, second) << 32 | np.maximum(first, second))[apart]
    order = np.argsort(key)  # not np.unique, whose stable sort takes twice as long
    key = key[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    position = np.minimum.reduceat(order, starts) if len(starts) else order
    key = key[starts]
    return np.stack([key >> 32, key & 0xFFFF_FFFF], axis=1), apart[position]
