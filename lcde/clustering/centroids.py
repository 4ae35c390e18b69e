"""Clusters by the similarity of centroids: split where it is below a threshold, merged where it is above.

Photographs of one person that are not alike meet in the mean: centroids tell strangers apart better than faces do.
"""

import numpy as np
from scipy.sparse import csr_matrix

ITERATIONS = 20  # of 2-means, which takes fewer nearly always


def split_clusters(labels: np.ndarray, features: np.ndarray, threshold: float) -> np.ndarray:
    """Labels (N,) int64 after splitting clusters of ``labels`` (N,) int64 whose halves are less similar.

    features: (N, D) float32, unit. Halves are those of 2-means, and are split again as long as their centroids are
    less similar than ``threshold``. Clusters of two faces stay.
    """
    result = labels.copy()
    order = np.argsort(labels, kind="stable")
    clusters = np.split(order, np.cumsum(np.bincount(labels))[:-1])
    while clusters:
        faces = clusters.pop()
        if len(faces) > 2:
            left, right = _halves(features[faces])
            if _unit(features[faces[left]].sum(axis=0)) @ _unit(features[faces[right]].sum(axis=0)) < threshold:
                result[faces[right]] = result.max() + 1
                clusters += [faces[left], faces[right]]
    return result


def merge_clusters(labels: np.ndarray, features: np.ndarray, edges: np.ndarray, threshold: float) -> np.ndarray:
    """Labels (N,) int64 from 0 after merging clusters of ``labels`` (N,) int64 that are more similar.

    features: (N, D) float32, unit. Only clusters that one of ``edges`` (M, 2) joins are compared. Two merge where
    their centroids are more similar than ``threshold`` and neither has a better partner, until no two do.
    """
    num_faces, num_clusters = len(labels), labels.max() + 1
    ones = np.ones(num_faces, dtype=np.float32)
    sums = csr_matrix((ones, (labels, np.arange(num_faces))), shape=(num_clusters, num_faces)) @ features
    merged = np.arange(num_clusters)
    pairs = _different(labels[edges])
    while len(pairs):
        centroids = _unit(sums)
        first, second = pairs.T
        similarity = np.einsum("md,md->m", centroids[first], centroids[second])
        place = np.empty(len(pairs), dtype=np.int64)
        place[np.argsort(similarity, kind="stable")] = np.arange(len(pairs))  # no ties, so nobody has two partners
        best = np.zeros(num_clusters, dtype=np.int64)
        for cluster in (first, second):
            np.maximum.at(best, cluster, place)
        partners = (similarity > threshold) & (place == best[first]) & (place == best[second])
        if not partners.any():
            break
        into = np.arange(num_clusters)
        into[second[partners]] = first[partners]
        sums[first[partners]] += sums[second[partners]]
        merged, pairs = into[merged], _different(into[pairs])
    return np.unique(merged[labels], return_inverse=True)[1]


def _halves(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ``features`` (n, D) in two by spherical 2-means, starting from the sides of the widest direction."""
    centre = features.mean(axis=0)
    widest = np.linalg.svd(features - centre, full_matrices=False)[2][0]
    side = features @ widest > centre @ widest
    for _ in range(ITERATIONS):
        if side.all() or not side.any():  # all faces alike
            side = np.arange(len(features)) == 0
            break
        before = side
        side = features @ (_unit(features[side].sum(axis=0)) - _unit(features[~side].sum(axis=0))) > 0
        if np.array_equal(side, before):
            break
    return np.flatnonzero(side), np.flatnonzero(~side)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """``vectors`` (…, D) at length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(np.float32).tiny)


def _different(pairs: np.ndarray) -> np.ndarray:
    """Each pair (M, 2) of two different clusters once, the lower one first."""
    pairs = np.sort(pairs, axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)
