"""Features as a gallery's own clusters let them be seen: what differs between photographs of one person counts less."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

# Of the covariance within clusters; the rest is alike in all directions, for clusters hold what is alike already.
SHARE = 0.2
IDENTITIES = 100  # that many more, of mean zero, are in the mean face: that of a few people is their own
ROWS = 16_384  # faces transformed at a time


@dataclass(frozen=True)
class Whitening:
    """Within-class covariance normalisation (Hatch et al. 2006), with clusters as classes.

    mean:    (D,) float32, the mean face, in which all clusters weigh the same; blurred faces are drawn to it
    matrix:  (D, D) float32, by which features without it are multiplied
    """

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray) -> "Whitening":
        """That of clusters ``labels`` (N,) int64 from 0, -1 for noise, of unit ``features`` (N, D) float32.

        In the covariance, a cluster of n faces weighs about as the square root of n.
        """
        numbers = labels + 1
        sizes = np.bincount(numbers, minlength=1).astype(np.float32)
        sizes[0] = 0  # noise is no cluster
        share = np.where(sizes > 0, 1 / np.maximum(sizes, 1), 0)
        centroids = cluster_sums(features, numbers)
        mean = share @ centroids / (np.count_nonzero(sizes) + IDENTITIES)
        centroids *= share[:, None]
        weight = np.where(sizes > 1, np.sqrt(sizes) / np.maximum(sizes - 1, 1), 0)
        matrix = np.eye(features.shape[1], dtype=np.float32)
        covariance = np.zeros_like(matrix)
        for start in range(0, len(features), ROWS):
            own = numbers[start : start + ROWS]
            deviations = features[start : start + ROWS] - centroids[own]
            covariance += (weight[own, None] * deviations).T @ deviations
        scale = np.trace(covariance) / len(covariance)
        if scale > 0:
            values, vectors = np.linalg.eigh(SHARE / scale * covariance + (1 - SHARE) * matrix)
            matrix = vectors / np.sqrt(values) @ vectors.T
        return cls(mean, matrix)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """``features`` (N, D) float32 as they are seen, unit but for a face at the mean, which becomes zero."""
        seen = np.empty_like(features)
        for start in range(0, len(features), ROWS):
            rows = (features[start : start + ROWS] - self.mean) @ self.matrix
            length = np.linalg.norm(rows, axis=1, keepdims=True)
            seen[start : start + ROWS] = rows / np.maximum(length, np.finfo(np.float32).tiny)
        return seen


def cluster_sums(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sum (C, D) of the ``features`` (N, D) of each cluster of ``labels`` (N,) from 0; (1, D) where there is none."""
    num_faces = len(labels)
    ones = np.ones(num_faces, dtype=np.float32)
    shape = labels.max(initial=0) + 1, num_faces
    return csr_matrix((ones, (labels, np.arange(num_faces))), shape=shape) @ features
