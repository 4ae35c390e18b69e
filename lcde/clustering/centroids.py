"""Merging of clusters that are more similar than impostors are: means vary less than faces."""

from collections.abc import Callable
from functools import partial

import numpy as np

from lcde.clustering.edges import distinct_pairs, edge_blocks
from lcde.clustering.transformed import Features
from lcde.clustering.whitening import Whitened, cluster_sums
from lcde.data.gallery import KNNGraph, row_blocks

COMPARED = 10  # impostors per face that reach the similarity from which a kNN edge makes two clusters be compared


def merge_similar(
    labels: np.ndarray, whitened: Whitened, threshold: float, impostor_merges: float, num_known: int = 0
) -> np.ndarray:
    """`merge_centroids` above ``threshold``, then `merge_by_average` with so many wrong merges expected in all."""
    features, graph, impostors = whitened.features, whitened.graph, whitened.impostors
    compared = impostors.similarity(COMPARED)
    labels = merge_centroids(labels, features, graph, threshold, compared, num_known)
    if not impostor_merges:
        return labels
    average = partial(impostors.between_clusters, wrong=impostor_merges)
    return merge_by_average(labels, features, graph, average, compared, num_known)


def merge_centroids(
    labels: np.ndarray, features: Features, graph: KNNGraph, threshold: float, compared: float, num_known: int = 0
) -> np.ndarray:
    """Merge pairs of clusters that are each other's most similar one, until no two are above the threshold.

    Parameters
    ----------
    labels : (N,) int64
        Clusters numbered from 0, -1 for noise, which stays noise.
    features : (N, D) float32
        Unit length, whitened or not; the centroids are of these.
    graph : KNNGraph
        Of the N faces.
    threshold : float
        Similarity of centroids above which clusters merge.
    compared : float
        Only clusters that a kNN edge of at least this similarity connects are compared.
    num_known : int
        That many faces have been clustered before: their clusters keep their numbers and do not merge with each other,
        and only the edges of later faces count.

    Returns
    -------
    (N,) int64
        Numbered from 0.
    """
    return _merged(labels, features, graph, lambda _: threshold, compared, num_known, average=False)


def merge_by_average(
    labels: np.ndarray,
    features: Features,
    graph: KNNGraph,
    threshold: Callable[[int], float],
    compared: float,
    num_known: int = 0,
) -> np.ndarray:
    """As `merge_centroids` by average linkage: the mean similarity of a face of one cluster and a face of the other.

    ``threshold`` gives it for the number of clusters that are left.
    """
    return _merged(labels, features, graph, threshold, compared, num_known, average=True)


def _merged(
    labels: np.ndarray,
    features: Features,
    graph: KNNGraph,
    threshold: Callable[[int], float],
    compared: float,
    num_known: int,
    average: bool,
) -> np.ndarray:
    first_new, num_clusters = int(labels[:num_known].max(initial=-1)) + 1, int(labels.max()) + 1
    sums = cluster_sums(features, labels + 1)[1:]
    # What a product of sums is divided by: faces for the mean similarity, lengths for that of the centroids.
    weight = np.bincount(labels + 1, minlength=num_clusters + 1)[1:] if average else np.linalg.norm(sums, axis=1)
    merged, into = np.arange(num_clusters), np.arange(num_clusters)
    pairs, _ = _mergeable(labels[edges_between_clusters(labels, graph, compared, num_known)], first_new)
    similarity, stale, left = np.empty(len(pairs), dtype=np.float32), np.arange(len(pairs)), num_clusters
    while len(pairs):
        for rows in (stale[block] for block in row_blocks(len(stale))):
            first, second = pairs[rows].T
            product = np.einsum("md,md->m", sums[first], sums[second])
            similarity[rows] = product / np.maximum(weight[first] * weight[second], np.finfo(np.float32).tiny)
        close = np.flatnonzero(similarity > threshold(left))
        if not len(close):
            break
        close = pairs[close[np.argsort(similarity[close], kind="stable")]]
        best, place = np.empty(num_clusters, dtype=np.int64), np.arange(len(close))
        best[close] = place[:, None]  # in ascending order, so that the best partner of each is written last
        grown, gone = close[(best[close] == place[:, None]).all(axis=1)].T
        into[gone], left = grown, left - len(gone)
        sums[grown] += sums[gone]
        weight[grown] = weight[grown] + weight[gone] if average else np.linalg.norm(sums[grown], axis=1)
        merged = into[merged]
        pairs, kept = _mergeable(into[pairs], first_new)
        similarity, stale = similarity[kept], np.flatnonzero(np.isin(pairs, grown).any(axis=1))
    return np.append(np.unique(merged, return_inverse=True)[1], -1)[labels]


def edges_between_clusters(labels: np.ndarray, graph: KNNGraph, edge_similarity: float, first_row: int) -> np.ndarray:
    """Edges (M, 2) of at least ``edge_similarity``, of faces from ``first_row`` on, between two clusters of ``labels``.

    The many more edges inside clusters are dropped block by block.
    """
    edges = [np.empty((0, 2), dtype=np.int64)]
    for found, _ in edge_blocks(graph, edge_similarity, first_row):
        first, second = labels[found.T]
        edges.append(found[(first != second) & (np.minimum(first, second) >= 0)])
    return np.concatenate(edges)


def _mergeable(pairs: np.ndarray, first_new: int) -> tuple[np.ndarray, np.ndarray]:
    """As `distinct_pairs`, without pairs of two clusters below ``first_new``."""
    pairs, position = distinct_pairs(pairs)
    kept = pairs[:, 1] >= first_new
    return pairs[kept], position[kept]
