"""Clusters whose centroids are more similar than strangers come become one."""

from dataclasses import dataclass

import numpy as np

from lcde.clustering.edges import distinct_pairs, edges_above
from lcde.clustering.whitening import cluster_sums

ROWS = 16_384  # rows of the graph searched, and pairs of clusters compared, at a time


@dataclass(frozen=True)
class CentroidRule:
    """Which clusters to compare, and which of them to merge.

    Photographs of one person that are not alike meet in the mean: centroids tell strangers apart better than faces.

    threshold:        similarity of centroids above which clusters merge
    edge_similarity:  only clusters that a kNN edge of at least this similarity joins are compared
    """

    threshold: float
    edge_similarity: float

    def edges(
        self, labels: np.ndarray, indices: np.ndarray, similarities: np.ndarray, first_row: int = 0
    ) -> np.ndarray:
        """Edges (M, 2) between clusters ``labels`` (N,), whose centroids are to be compared.

        They are those of a graph (N - first_row, K) of the faces from ``first_row`` on; the many more inside clusters
        are let go of block by block.
        """
        edges = [np.empty((0, 2), dtype=np.int64)]
        for start in range(0, len(indices), ROWS):
            rows = slice(start, start + ROWS)
            found, _ = edges_above(indices[rows], similarities[rows], self.edge_similarity, first_row + start)
            edges.append(found[np.not_equal(*labels[found].T)])
        return np.concatenate(edges)

    def merge(self, labels: np.ndarray, features: np.ndarray, edges: np.ndarray, num_known: int = 0) -> np.ndarray:
        """Labels (N,) int64 from 0 after merging clusters of ``labels`` (N,) int64 from 0.

        features: (N, D) float32, unit, whitened or not; edges: (M, 2), only clusters that one joins are compared. Two
        merge where neither has a better partner, until no two do. The first ``num_known`` clusters keep their numbers
        and do not merge with each other.
        """
        num_clusters = labels.max() + 1
        sums = cluster_sums(features, labels)
        length = np.linalg.norm(sums, axis=1)
        merged, into = np.arange(num_clusters), np.arange(num_clusters)
        pairs, _ = _different(labels[edges], num_known)
        similarity, stale = np.empty(len(pairs), dtype=np.float32), np.arange(len(pairs))
        while len(pairs):
            for start in range(0, len(stale), ROWS):
                rows = stale[start : start + ROWS]
                first, second = pairs[rows].T
                product = np.einsum("md,md->m", sums[first], sums[second])
                similarity[rows] = product / np.maximum(length[first] * length[second], np.finfo(np.float32).tiny)
            close = np.flatnonzero(similarity > self.threshold)
            if not len(close):
                break
            close = pairs[close[np.argsort(similarity[close], kind="stable")]]
            best, place = np.empty(num_clusters, dtype=np.int64), np.arange(len(close))
            best[close] = place[:, None]  # in ascending order, so that the best partner of each is written last
            grown, gone = close[(best[close] == place[:, None]).all(axis=1)].T
            into[gone] = grown
            sums[grown] += sums[gone]
            length[grown] = np.linalg.norm(sums[grown], axis=1)
            merged = into[merged]
            pairs, kept = _different(into[pairs], num_known)
            similarity, stale = similarity[kept], np.flatnonzero(np.isin(pairs, grown).any(axis=1))
        return np.unique(merged[labels], return_inverse=True)[1]


def _different(pairs: np.ndarray, num_known: int) -> tuple[np.ndarray, np.ndarray]:
    """As `distinct_pairs`, of two clusters that are not both known."""
    pairs, position = distinct_pairs(pairs)
    kept = pairs[:, 1] >= num_known
    return pairs[kept], position[kept]
