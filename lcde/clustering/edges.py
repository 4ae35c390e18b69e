"""Edges of the kNN graph, and which of them may join clusters: density edges E_d and similar edges E_s."""

import numpy as np

from lcde.clustering.density import ROWS

GATHERED = 128  # faces whose neighbours' features are gathered at a time: they stay in the cache


def official_similarity_threshold(similarities: np.ndarray) -> float:
    """Mean similarity to the 3 nearest neighbours over the whole set (N, K), the published rule for τ; 1 if alone."""
    return float(np.mean(similarities[:, 1:4])) if similarities.shape[1] > 1 else 1.0


def edge_similarities(features: np.ndarray, indices: np.ndarray, first_row: int = 0) -> np.ndarray:
    """Cosine similarities (N - first_row, K) float32 of the faces from ``first_row`` on to their neighbours.

    ``features`` (N, D) are unit; row 0 of ``indices`` (N - first_row, K) is that of face ``first_row``.
    """
    similarities = np.empty(indices.shape, dtype=np.float32)
    for start in range(0, len(indices), GATHERED):
        rows = slice(start, start + GATHERED)
        faces = features[first_row + start : first_row + start + GATHERED]
        similarities[rows] = np.einsum("nkd,nd->nk", features[indices[rows]], faces)
    return similarities


def edges_above(
    indices: np.ndarray, similarities: np.ndarray, threshold: float, first_row: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Edges (M, 2) int64 of at least ``threshold`` and their similarities (M,), of a graph (n, K) of faces that are
    numbered from ``first_row``; an edge that both its ends name comes twice."""
    edges, found = [np.empty((0, 2), dtype=np.int64)], [similarities[:0, 0]]
    for start in range(0, len(indices), ROWS):
        rows = slice(start, start + ROWS)
        above = similarities[rows] >= threshold
        above[:, 0] = False
        place = np.flatnonzero(above)  # several times faster than nonzero of both axes
        faces = place // indices.shape[1] + start + first_row
        edges.append(np.stack([faces, indices[rows].ravel()[place]], axis=1))
        found.append(similarities[rows].ravel()[place])
    return np.concatenate(edges), np.concatenate(found)


def select_edges(
    indices: np.ndarray,
    similarities: np.ndarray,
    connectivity: np.ndarray,
    density: np.ndarray,
    similarity_threshold: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Density edges and similar edges of a kNN graph (paper, section 3.3).

    ``indices`` (N, K) int32, ``similarities`` and symmetrised ``connectivity`` (N, K) float32, ``density`` (N,).

    Returns
    edges_density: (M, 2) int64, from each face to the neighbour with the largest s·c among the denser ones, ties to
        the lowest position; a face without a denser neighbour of s·c > 0 has none.
    edges_similar: (L, 2) int64, undirected, sorted and unique: all other edges to a denser neighbour with
        s·c >= ``similarity_threshold``.
    """
    edges_density, keys = [], []
    for start in range(0, len(indices), ROWS):
        rows = slice(start, start + ROWS)
        denser = density[indices[rows]] > density[rows, None]
        weight = np.where(denser, similarities[rows].astype(np.float64) * connectivity[rows], 0)
        best = weight.argmax(axis=1)  # column 0, never denser than itself, where there is none
        joined = np.flatnonzero(best)
        edges_density.append(np.stack([joined + start, indices[joined + start, best[joined]]], axis=1))
        similar = denser & (weight >= similarity_threshold)
        similar[np.arange(len(best)), best] = False
        faces, columns = np.nonzero(similar)
        others = indices[rows][faces, columns]
        faces += start
        keys.append(np.minimum(faces, others) << 32 | np.maximum(faces, others))
    # A kNN edge leads to the denser end only, so no edge occurs in both directions and sorting leaves no repeats.
    key = np.sort(np.concatenate(keys))
    return np.concatenate(edges_density), np.stack([key >> 32, key & 0xFFFF_FFFF], axis=1)


def values_of_edges(values: np.ndarray, edges: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """What ``values`` (N, K) hold for each of the kNN edges ``edges`` (M, 2): (M,)."""
    result = np.empty(len(edges), dtype=values.dtype)
    for start in range(0, len(edges), ROWS):
        source, target = edges[start : start + ROWS].T
        result[start : start + ROWS] = values[source, (indices[source] == target[:, None]).argmax(axis=1)]
    return result


def distinct_pairs(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair (M, 2) of two different numbers below 2^32 once, the lower first (P, 2), and where it stood (P,)."""
    apart = np.flatnonzero(np.not_equal(*pairs.T))
    first, second = pairs[apart].min(axis=1), pairs[apart].max(axis=1)
    key, position = np.unique(first << 32 | second, return_index=True)
    return np.stack([key >> 32, key & 0xFFFF_FFFF], axis=1), apart[position]
