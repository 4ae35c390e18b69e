"""Features without what all faces share, and whitened within clusters (WCCN)."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from lcde.clustering.impostors import Impostors
from lcde.clustering.transformed import Features, Transformed, num_dimensions
from lcde.data.gallery import Gallery, KNNGraph, row_blocks

SHARE = 0.2  # of the within-cluster covariance; the rest is the unit matrix, for clusters hold similar faces only
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Whitened:
    """A gallery compared by features that clusters of it have centred and whitened.

    Attributes
    ----------
    features : Transformed
    graph : KNNGraph
        Of the transformed features. The neighbours are those of the features as given, so that rows are not in
        descending order.
    impostors : Impostors
        Of pairs of different clusters.
    """

    features: Transformed
    graph: KNNGraph
    impostors: Impostors

    @classmethod
    def by(cls, gallery: Gallery, labels: np.ndarray, centring: bool = True, whitening: bool = True) -> "Whitened":
        """``gallery`` by its clusters ``labels``; the parameters are those of `transformed`."""
        features = transformed(gallery, labels, centring, whitening)
        graph = KNNGraph(gallery.graph.indices, features.similarities(gallery.graph.indices))
        return cls(features, graph, Impostors.of(features, labels, graph.similarities))


def transformed(gallery: Gallery, labels: np.ndarray, centring: bool = True, whitening: bool = True) -> Transformed:
    """Features of ``gallery`` less `common_offset`, times `within_cluster_whitening`.

    Parameters
    ----------
    gallery : Gallery
    labels : (N,) int64
        Clusters from 0, -1 for noise.
    centring, whitening : bool
        Whether to do so.
    """
    given, dim = gallery.features, gallery.features.shape[1]
    offset, matrix = np.zeros(dim, dtype=np.float32), np.eye(dim, dtype=np.float32)
    if centring:
        offset = common_offset(given, labels, Impostors.of(given, labels, gallery.graph.similarities).mean)
    if whitening:
        matrix = within_cluster_whitening(given, labels)
    return Transformed(given, offset, matrix)


def common_offset(features: np.ndarray, labels: np.ndarray, impostor_mean: float) -> np.ndarray:
    """What all faces share: (D,) float32, to be subtracted.

    If each face is the offset plus a part of its own, and these parts are orthogonal on average, then the mean
    similarity of impostor pairs is the squared length of the offset. The direction of the offset is that of the mean of
    the clusters' centroids; the length of that mean would be too large in a gallery of few identities.

    Parameters
    ----------
    features : (N, D) float32
        Unit length.
    labels : (N,) int64
        Clusters from 0, -1 for noise.
    impostor_mean : float
        Mean similarity of impostor pairs (`lcde.clustering.impostors`).
    """
    sizes, centroids = centroids_of(features, labels)
    mean = centroids.sum(axis=0) / max(1, np.count_nonzero(sizes))
    length = float(np.linalg.norm(mean))
    return (mean * min(1.0, max(impostor_mean, 0.0) ** 0.5 / max(length, TINY))).astype(np.float32)


def within_cluster_whitening(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Matrix (D, D) float32 by which centred features are multiplied, so that variation within clusters counts less.

    The covariance is that of `within_cluster_covariance`. Without clusters of two or more different faces the matrix
    is the unit matrix.

    Parameters
    ----------
    features : (N, D) float32
    labels : (N,) int64
        Clusters from 0, -1 for noise.

    References
    ----------
    Hatch, Kajarekar, Stolcke: Within-class covariance normalization for SVM-based speaker recognition.
    Interspeech 2006.
    """
    unit = np.eye(features.shape[1], dtype=np.float32)
    covariance = within_cluster_covariance(features, labels, *centroids_of(features, labels))
    if covariance is None:  # every face is alone, as before the first clusters
        return unit
    scale = np.trace(covariance) / num_dimensions(features)
    values, vectors = np.linalg.eigh(SHARE / scale * covariance + (1 - SHARE) * unit)
    return vectors / np.sqrt(values) @ vectors.T


def within_cluster_covariance(
    features: Features, labels: np.ndarray, sizes: np.ndarray, centroids: np.ndarray
) -> np.ndarray | None:
    """Covariance (D, D) float32 of the faces of a cluster, or None without clusters of two or more different faces.

    It is the mean of the clusters' covariances, in which a cluster of n faces weighs as the square root of n.

    Parameters
    ----------
    features : (N, D) float32
    labels : (N,) int64
        Clusters from 0, -1 for noise, which does not count.
    sizes, centroids : (C + 1,), (C + 1, D) float32
        As of `centroids_of`.
    """
    many = sizes > 1
    weights = np.where(many, np.sqrt(sizes) / np.maximum(sizes - 1, 1), 0)
    if not many.any():
        return None
    covariance = np.zeros((features.shape[1], features.shape[1]), dtype=np.float32)
    for rows in row_blocks(len(labels)):
        own = labels[rows] + 1
        deviations = features[rows] - centroids[own]
        covariance += (weights[own, None] * deviations).T @ deviations
    return covariance / np.sqrt(sizes[many]).sum() if np.trace(covariance) > 0 else None


def cluster_sums(features: Features, labels: np.ndarray) -> np.ndarray:
    """Sum (C, D) of the ``features`` (N, D) of each cluster of ``labels`` (N,) from 0; (1, D) where there is none."""
    sums = np.zeros((labels.max(initial=0) + 1, features.shape[1]), dtype=np.float32)
    for rows in row_blocks(len(labels)):
        clusters, own = np.unique(labels[rows], return_inverse=True)
        ones = np.ones(len(own), dtype=np.float32)
        sums[clusters] += csr_matrix((ones, (own, np.arange(len(own))))) @ features[rows]
    return sums


def centroids_of(features: Features, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes (C + 1,) and centroids (C + 1, D) of the C clusters; row 0 stands for noise and is zero."""
    sizes = np.bincount(labels + 1, minlength=1).astype(np.float32)
    sums = cluster_sums(features, labels + 1)
    sizes[0], sums[0] = 0, 0
    return sizes, sums / np.maximum(sizes, 1)[:, None]
