"""Clusters whose centroids are more similar than strangers come become one."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from lcde.clustering.edges import official_similarity_threshold
from lcde.clustering.strangers import Strangers


@dataclass(frozen=True)
class CentroidRule:
    """Which clusters to compare, and which of them to merge.

    Photographs of one person that are not alike meet in the mean: centroids tell strangers apart better than faces.

    threshold:        similarity of centroids above which clusters merge
    edge_similarity:  only clusters that a kNN edge of at least this similarity joins are compared
    """

    threshold: float
    edge_similarity: float

    @classmethod
    def of(cls, strangers: Strangers, similarities: np.ndarray, per_centroid: float) -> "CentroidRule":
        """The similarity that ``per_centroid`` strangers reach, on edges that one stranger a face reaches.

        Not above the official threshold of ``similarities`` (N, K), that of near neighbours, where faces crowd.
        """
        limit = official_similarity_threshold(similarities)
        return cls(min(limit, strangers.similarity(per_centroid)), min(limit, strangers.similarity(1)))

    def edges(self, indices: np.ndarray, similarities: np.ndarray, first_row: int = 0) -> np.ndarray:
        """Edges (M, 2) of a graph (n, K) of the faces from ``first_row`` on, of at least `edge_similarity`."""
        rows, columns = np.nonzero(similarities[:, 1:] >= self.edge_similarity)
        return np.stack([rows + first_row, indices[rows, columns + 1]], axis=1)

    def merge(self, labels: np.ndarray, features: np.ndarray, edges: np.ndarray, num_known: int = 0) -> np.ndarray:
        """Labels (N,) int64 from 0 after merging clusters of ``labels`` (N,) int64 from 0.

        features: (N, D) float32, unit; edges: (M, 2), only clusters that one joins are compared. Two merge where
        neither has a better partner, until no two do. The first ``num_known`` clusters keep their numbers and do not
        merge with each other.
        """
        num_faces, num_clusters = len(labels), labels.max() + 1
        ones = np.ones(num_faces, dtype=np.float32)
        sums = csr_matrix((ones, (labels, np.arange(num_faces))), shape=(num_clusters, num_faces)) @ features
        pairs = _different(labels[edges], num_known)
        merged = np.arange(num_clusters)
        while len(pairs):
            centroids = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(np.float32).tiny)
            first, second = pairs.T
            similarity = np.einsum("md,md->m", centroids[first], centroids[second])
            place = np.empty(len(pairs), dtype=np.int64)
            place[np.argsort(similarity, kind="stable")] = np.arange(len(pairs))  # no ties, so nobody has two partners
            best = np.zeros(num_clusters, dtype=np.int64)
            for cluster in (first, second):
                np.maximum.at(best, cluster, place)
            partners = (similarity > self.threshold) & (place == best[first]) & (place == best[second])
            if not partners.any():
                break
            into = np.arange(num_clusters)
            into[second[partners]] = first[partners]
            sums[first[partners]] += sums[second[partners]]
            merged, pairs = into[merged], _different(into[pairs], num_known)
        return np.unique(merged[labels], return_inverse=True)[1]


def _different(pairs: np.ndarray, num_known: int) -> np.ndarray:
    """Each pair (M, 2) of two different clusters, not both known, once, the lower one first."""
    pairs = np.sort(pairs, axis=1)
    return np.unique(pairs[(pairs[:, 0] < pairs[:, 1]) & (pairs[:, 1] >= num_known)], axis=0)
