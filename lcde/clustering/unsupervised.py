"""Clusters without any trained model: Infomap, then centroids, by a threshold that comes from the data itself."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from lcde.clustering.centroids import merge_clusters, split_clusters
from lcde.clustering.classical import Infomap
from lcde.clustering.components import noise_faces
from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import official_similarity_threshold
from lcde.clustering.pipeline import Clustering, timed

SAMPLE = 5_000  # faces compared with as many others: the quartiles of their similarity stand to the third decimal


@dataclass(frozen=True)
class Unsupervised:
    """Infomap communities of the kNN edges that strangers hardly ever reach, then split and merged by their centroids.

    strangers_per_face:  how many strangers a face may be expected to have above the threshold of edges, in the whole
        gallery
    strangers_per_centroid:  the same for the similarity of centroids; more, for edges chain and centroids do not
    num_trials:          runs of Infomap, of which the best one counts
    min_cluster_size, density_threshold:  faces of smaller clusters and of lower density are noise
    seed:                of Infomap and of the random pairs
    """

    strangers_per_face: float
    strangers_per_centroid: float
    num_trials: int
    seed: int
    density_threshold: float | None = None
    min_cluster_size: int = 1

    def __call__(self, features: np.ndarray, indices: np.ndarray, similarities: np.ndarray) -> Clustering:
        """Cluster unit ``features`` (N, D) with their kNN graph (N, K).

        Connectivity is 1 above the threshold and 0 below, density its sum over similarities, as in LCDE; there are no
        density edges, all edges above the threshold are similar edges.
        """
        seconds: dict[str, float] = {}
        with timed(seconds, "edges"):
            threshold, of_centroids, doubtful = self.thresholds(features, similarities)
            connectivity = symmetrise((similarities >= threshold).astype(np.float32), indices)
            densities = density(connectivity, similarities)
            edges = _edges_above(indices, similarities, threshold)
        with timed(seconds, "components"):
            labels = Infomap(threshold, self.num_trials, self.seed)(indices, similarities, threshold)
            labels = split_clusters(labels, features, of_centroids)
            labels = merge_clusters(labels, features, _edges_above(indices, similarities, doubtful), of_centroids)
        noise = noise_faces(labels, densities, self.min_cluster_size, self.density_threshold)
        no_edges, no_probability = np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32)
        return Clustering(
            labels, noise, connectivity, densities, no_edges, no_probability, edges, threshold, 1.0, seconds
        )

    def thresholds(self, features: np.ndarray, similarities: np.ndarray) -> list[float]:
        """The similarities of edges, of centroids, and of edges worth a look: one of a face's N strangers reaches it.

        Two random faces are nearly always strangers, whose similarity is about normal: median and lower quartile of
        random pairs, which friends hardly move, give its mean and spread, and N its tail. None is above the similarity
        of near neighbours, the official rule of LCDE, which holds where faces crowd.
        """
        rng = np.random.default_rng(self.seed)
        first, second = (rng.permutation(len(features))[:SAMPLE] for _ in range(2))
        pairs = (features[first] @ features[second].T)[first[:, None] != second]
        if not len(pairs):
            return [1.0] * 3
        lower, median = np.quantile(pairs, [0.25, 0.5])
        spread = (median - lower) / norm.ppf(0.75)
        reached = np.array([self.strangers_per_face, self.strangers_per_centroid, 1]) / len(features)
        similarity = median + spread * norm.isf(np.minimum(0.5, reached))
        return np.minimum(similarity, official_similarity_threshold(similarities)).tolist()


def _edges_above(indices: np.ndarray, similarities: np.ndarray, threshold: float) -> np.ndarray:
    """Undirected kNN edges (M, 2) int64 of at least ``threshold``, each once."""
    rows, columns = np.nonzero(similarities[:, 1:] >= threshold)
    return np.unique(np.sort(np.stack([rows, indices[rows, columns + 1]], axis=1), axis=1), axis=0)
