"""Clusters without any trained model: Infomap on a kNN graph whose threshold comes from the data itself."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from lcde.clustering.classical import Infomap
from lcde.clustering.components import noise_faces
from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import official_similarity_threshold
from lcde.clustering.pipeline import Clustering, timed

SAMPLE = 5_000  # faces compared with as many others: the quartiles of their similarity stand to the third decimal


@dataclass(frozen=True)
class Unsupervised:
    """Infomap communities of the kNN edges that strangers hardly ever reach.

    strangers_per_face:  how many strangers a face may be expected to have above the threshold, in the whole gallery
    num_trials:          runs of Infomap, of which the best one counts
    min_cluster_size, density_threshold:  faces of smaller clusters and of lower density are noise
    seed:                of Infomap and of the random pairs
    """

    strangers_per_face: float
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
            threshold = self.threshold(features, similarities)
            connectivity = symmetrise((similarities >= threshold).astype(np.float32), indices)
            densities = density(connectivity, similarities)
            rows, columns = np.nonzero(similarities[:, 1:] >= threshold)
            edges = np.unique(np.sort(np.stack([rows, indices[rows, columns + 1]], axis=1), axis=1), axis=0)
        with timed(seconds, "components"):
            labels = Infomap(threshold, self.num_trials, self.seed)(indices, similarities, threshold)
        noise = noise_faces(labels, densities, self.min_cluster_size, self.density_threshold)
        no_edges, no_probability = np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32)
        return Clustering(
            labels, noise, connectivity, densities, no_edges, no_probability, edges, threshold, 1.0, seconds
        )

    def threshold(self, features: np.ndarray, similarities: np.ndarray) -> float:
        """The similarity that ``strangers_per_face`` of the N strangers of a face are expected to reach.

        Two random faces are nearly always strangers, whose similarity is about normal: median and lower quartile of
        random pairs, which friends hardly move, give its mean and spread, and N its tail. Where faces crowd so that
        this is above the similarity of near neighbours, that (the official rule of LCDE) is the threshold.
        """
        rng = np.random.default_rng(self.seed)
        first, second = (rng.permutation(len(features))[:SAMPLE] for _ in range(2))
        pairs = (features[first] @ features[second].T)[first[:, None] != second]
        if not len(pairs):
            return 1.0
        lower, median = np.quantile(pairs, [0.25, 0.5])
        spread = (median - lower) / norm.ppf(0.75)
        reached = median + spread * norm.isf(min(0.5, self.strangers_per_face / len(features)))
        return float(min(reached, official_similarity_threshold(similarities)))
