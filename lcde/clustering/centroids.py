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
    """Labels (N,) after merges by centroids above ``threshold``, then by average with so many wrong ones expected.

    The parameters are those of `Merging`.
    """
    compared = whitened.impostors.similarity(COMPARED)
    merging = Merging(labels, whitened.features, whitened.graph, compared, num_known)
    merging.by_centroids(threshold)
    if impostor_merges:
        merging.by_average(partial(whitened.impostors.between_clusters, wrong=impostor_merges))
    return merging.labels


class Merging:
    """Clusters that merge in rounds: pairs that are each other's most similar one, until no two are above a threshold.

    Parameters
    ----------
    labels : (N,) int64
        Clusters numbered from 0, -1 for noise, which stays noise.
    features : (N, D) float32
        Unit length, whitened or not; similarities of clusters are of these.
    graph : KNNGraph
        Of the N faces.
    compared : float
        Only clusters that a kNN edge of at least this similarity connects are compared.
    num_known : int
        That many faces have been clustered before: their clusters keep their numbers and do not merge with each other,
        and only the edges of later faces count.
    """

    def __init__(
        self, labels: np.ndarray, features: Features, graph: KNNGraph, compared: float, num_known: int = 0
    ) -> None:
        self._given, self._first_new = labels, int(labels[:num_known].max(initial=-1)) + 1
        self._sums = cluster_sums(features, labels + 1)[1:]
        self._sizes = np.bincount(labels + 1, minlength=len(self._sums) + 1)[1:]
        self._merged = np.arange(len(self._sums))
        self._pairs, _ = self._mergeable(pairs_of_clusters(labels, graph, compared, num_known))

    @property
    def labels(self) -> np.ndarray:
        """The clusters by now, (N,) int64 numbered from 0."""
        return np.append(np.unique(self._merged, return_inverse=True)[1], -1)[self._given]

    def by_centroids(self, threshold: float) -> None:
        """Merge by the similarity of centroids."""
        self._merge(lambda _: threshold, average=False)

    def by_average(self, threshold: Callable[[int], float]) -> None:
        """Merge by average linkage: the mean similarity of a face of one cluster and a face of the other.

        ``threshold`` gives the similarity above which clusters merge for the number of clusters that are left.
        """
        self._merge(threshold, average=True)

    def _merge(self, threshold: Callable[[int], float], average: bool) -> None:
        sums, pairs = self._sums, self._pairs
        # What a product of sums is divided by: faces for the mean similarity, lengths for that of the centroids.
        weight = self._sizes if average else np.linalg.norm(sums, axis=1)
        left = len(np.unique(self._merged))
        similarity, stale, into = np.empty(len(pairs), dtype=np.float32), np.arange(len(pairs)), np.arange(len(sums))
        while len(pairs):
            for rows in (stale[block] for block in row_blocks(len(stale))):
                first, second = pairs[rows].T
                product = np.einsum("md,md->m", sums[first], sums[second])
                similarity[rows] = product / np.maximum(weight[first] * weight[second], np.finfo(np.float32).tiny)
            close = np.flatnonzero(similarity > threshold(left))
            if not len(close):
                break
            close = pairs[close[np.argsort(similarity[close], kind="stable")]]
            best, place = np.empty(len(sums), dtype=np.int64), np.arange(len(close))
            best[close] = place[:, None]  # in ascending order, so that the best partner of each is written last
            grown, gone = close[(best[close] == place[:, None]).all(axis=1)].T
            into[gone], left = grown, left - len(gone)
            sums[grown] += sums[gone]
            self._sizes[grown] += self._sizes[gone]
            if not average:
                weight[grown] = np.linalg.norm(sums[grown], axis=1)
            self._merged = into[self._merged]
            pairs, kept = self._mergeable(into[pairs])
            similarity, stale = similarity[kept], np.flatnonzero(np.isin(pairs, grown).any(axis=1))
        self._pairs = pairs

    def _mergeable(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `distinct_pairs`, without pairs of two known clusters."""
        pairs, position = distinct_pairs(pairs)
        kept = pairs[:, 1] >= self._first_new
        return pairs[kept], position[kept]


def pairs_of_clusters(labels: np.ndarray, graph: KNNGraph, edge_similarity: float, first_row: int) -> np.ndarray:
    """Pairs (P, 2) of clusters of ``labels`` that an edge of at least ``edge_similarity`` connects, each once.

    Only edges of faces from ``first_row`` on count.
    """
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for edges, _ in edge_blocks(graph, edge_similarity, first_row):
        ends = labels[edges]
        pairs.append(distinct_pairs(ends[ends.min(axis=1) >= 0])[0])
    return distinct_pairs(np.concatenate(pairs))[0]
