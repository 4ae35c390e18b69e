"""Merging of clusters by centroids, by average linkage, by likelihood and by a judge of pairs."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lcde.clustering.edges import distinct_pairs, edge_blocks
from lcde.clustering.likelihood import TwoCovariance
from lcde.clustering.transformed import Features
from lcde.clustering.whitening import cluster_sums
from lcde.data.gallery import KNNGraph, row_blocks


class Clusters(NamedTuple):
    """Sums (m, D) of the faces of some clusters, numbers (m,) of faces, and a value (m,) that a linkage computed."""

    sums: np.ndarray
    sizes: np.ndarray
    value: np.ndarray


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

    @property
    def num_clusters(self) -> int:
        """Clusters that are left."""
        return len(np.unique(self._merged))

    def by_centroids(self, threshold: float) -> None:
        """Merge by the similarity of centroids."""
        self._merge(lambda sums, sizes: np.linalg.norm(sums, axis=1), _products, lambda _: threshold)

    def by_average(self, threshold: Callable[[int], float]) -> None:
        """Merge by average linkage: the mean similarity of a face of one cluster and a face of the other.

        ``threshold`` gives the similarity above which clusters merge for the number of clusters that are left.
        """
        self._merge(lambda sums, sizes: sizes, _products, threshold)

    def by_likelihood(self, model: TwoCovariance, expected_merges: float) -> None:
        """Merge by the log-likelihood ratio of one identity and two, after which no other linkage may follow.

        The ratio must exceed the prior odds of two identities: the number of pairs of clusters over that of the pairs
        which are expected to be of one, ``expected_merges``.
        """
        width = len(model.variances)
        for rows in row_blocks(len(self._sums)):
            self._sums[rows, :width] = model.moved(self._sums[rows], self._sizes[rows])
        self._sums = self._sums[:, :width]

        def ratio(first: Clusters, second: Clusters) -> np.ndarray:
            together = model.evidence(first.sums + second.sums, first.sizes + second.sizes)
            return together - first.value - second.value

        self._merge(model.evidence, ratio, lambda left: np.log(max(left * (left - 1) / 2 / expected_merges, 1)))

    def by_judgement(self, judge: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> float:
        """Merge by log-odds of one identity, above 0.

        ``judge`` gives those (P,) of pairs (P, 2) of clusters, by the sums (C, D) and sizes (C,) of all clusters.

        Returns
        -------
        float
            Mean of the log-odds that the clusters which are joined had at the start, before any merge, over the pairs
            of their faces: below 0 if most of them were judged different then. 0 where nothing merges.
        """
        into, sizes, compared = np.arange(len(self._sums)), self._sizes.copy(), self._pairs
        at_start = np.empty(0)
        while len(self._pairs):
            left = np.unique(self._merged)
            odds = judge(self._sums[left], self._sizes[left], np.searchsorted(left, self._pairs))
            at_start = at_start if len(at_start) else odds
            grown, gone = _best_of_both(self._pairs, odds, 0)
            if not len(grown):
                break
            into[gone] = grown
            self._sums[grown] += self._sums[gone]
            self._sizes[grown] += self._sizes[gone]
            self._merged = into[self._merged]
            self._pairs, _ = self._mergeable(into[self._pairs])
        joined = self._merged[compared[:, 0]] == self._merged[compared[:, 1]]
        if not joined.any():
            return 0.0
        return float(np.average(at_start[joined], weights=sizes[compared[joined]].prod(axis=1)))

    def _merge(
        self,
        value_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
        similarity_of: Callable[[Clusters, Clusters], np.ndarray],
        threshold: Callable[[int], float],
    ) -> None:
        """Merge by a linkage.

        ``value_of`` computes from sums and sizes what the linkage needs of each cluster, ``similarity_of`` compares
        pairs of clusters, and ``threshold`` tells above which similarity they merge while so many clusters are left.
        """
        sums, sizes, pairs = self._sums, self._sizes, self._pairs
        value = value_of(sums, sizes)
        left = len(np.unique(self._merged))
        similarity, stale, into = np.empty(len(pairs), dtype=np.float32), np.arange(len(pairs)), np.arange(len(sums))
        while len(pairs):
            for rows in (stale[block] for block in row_blocks(len(stale))):
                first, second = (Clusters(sums[ends], sizes[ends], value[ends]) for ends in pairs[rows].T)
                similarity[rows] = similarity_of(first, second)
            grown, gone = _best_of_both(pairs, similarity, threshold(left))
            if not len(grown):
                break
            into[gone], left = grown, left - len(gone)
            sums[grown] += sums[gone]
            sizes[grown] += sizes[gone]
            value[grown] = value_of(sums[grown], sizes[grown])
            self._merged = into[self._merged]
            pairs, kept = self._mergeable(into[pairs])
            similarity, stale = similarity[kept], np.flatnonzero(np.isin(pairs, grown).any(axis=1))
        self._pairs = pairs

    def _mergeable(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `distinct_pairs`, without pairs of two known clusters."""
        pairs, position = distinct_pairs(pairs)
        kept = pairs[:, 1] >= self._first_new
        return pairs[kept], position[kept]


def _best_of_both(pairs: np.ndarray, similarity: np.ndarray, threshold: float) -> np.ndarray:
    """The ``pairs`` (P, 2) above ``threshold`` that are the most similar ones of both ends, (2, m)."""
    close = np.flatnonzero(similarity > threshold)
    close = pairs[close[np.argsort(similarity[close], kind="stable")]]
    best, place = np.empty(pairs.max(initial=-1) + 1, dtype=np.int64), np.arange(len(close))
    best[close] = place[:, None]  # in ascending order, so that the best partner of each is written last
    return close[(best[close] == place[:, None]).all(axis=1)].T


def _products(first: Clusters, second: Clusters) -> np.ndarray:
    """Products (m,) of sums over those of the values: numbers of faces for mean similarities, lengths for cosines."""
    product = np.einsum("md,md->m", first.sums, second.sums)
    return product / np.maximum(first.value * second.value, np.finfo(np.float32).tiny)


def pairs_of_clusters(labels: np.ndarray, graph: KNNGraph, edge_similarity: float, first_row: int) -> np.ndarray:
    """Pairs (P, 2) of clusters of ``labels`` that an edge of at least ``edge_similarity`` connects, each once.

    Only edges of faces from ``first_row`` on count.
    """
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for edges, _ in edge_blocks(graph, edge_similarity, first_row):
        ends = labels[edges]
        pairs.append(distinct_pairs(ends[ends.min(axis=1) >= 0])[0])
    return distinct_pairs(np.concatenate(pairs))[0]
