"""Clusters without any trained model: Infomap, then centroids, by thresholds that come from the data itself; twice."""

from dataclasses import dataclass

import numpy as np

from lcde.clustering.centroids import CentroidRule
from lcde.clustering.communities import communities
from lcde.clustering.components import noise_faces
from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import distinct_pairs, edge_similarities, edges_above
from lcde.clustering.pipeline import Clustering, timed
from lcde.clustering.strangers import Strangers
from lcde.clustering.thresholds import ThresholdRule
from lcde.clustering.whitening import Whitening


@dataclass(frozen=True)
class Unsupervised:
    """Infomap communities of the kNN edges that strangers hardly ever reach, then merged by their centroids.

    The first clusters show along which directions photographs of one person differ; the second time these count less.

    strangers_per_face:  how many strangers a face may be expected to have above the threshold of edges, in the whole
        gallery
    strangers_per_centroid:  the same for the similarity of centroids; more, for edges chain and centroids do not
    num_trials:          runs of Infomap, of which the best one counts
    min_cluster_size, density_threshold:  faces of smaller clusters and of lower density are noise
    seed:                of Infomap
    """

    strangers_per_face: float
    strangers_per_centroid: float
    num_trials: int
    seed: int
    density_threshold: float | None = None
    min_cluster_size: int = 1

    def __call__(self, features: np.ndarray, indices: np.ndarray, similarities: np.ndarray) -> Clustering:
        """Cluster unit ``features`` (N, D) with their kNN graph (N, K).

        Connectivity is 1 where the whitened similarity is above its threshold and 0 below, density its sum over
        whitened similarities, as in LCDE; there are no density edges, all edges above the threshold are similar edges.
        """
        seconds: dict[str, float] = {}
        thresholds = ThresholdRule(None, self.strangers_per_face, self.strangers_per_centroid)
        with timed(seconds, "edges"):
            strangers = Strangers.of(features, indices)

        def cluster(
            seen: np.ndarray, weights: np.ndarray, whitened: Strangers
        ) -> tuple[np.ndarray, np.ndarray, float, CentroidRule]:
            """Labels (N,), edges (M, 2) and both rules, with ``seen`` (N, D) features and ``weights`` (N, K)."""
            with timed(seconds, "edges"):
                threshold = thresholds.edges(weights, whitened)
                edges, above = edges_above(indices, weights, threshold)
            with timed(seconds, "components"):
                labels = communities(edges, above, len(indices), self.num_trials, self.seed)
            with timed(seconds, "centroids"):
                rule = thresholds.centroids(strangers, whitened)
                labels = rule.merge(labels, seen, rule.edges(labels, indices, similarities))
            return labels, edges, threshold, rule

        first, *_ = cluster(features, similarities, strangers)
        with timed(seconds, "whitening"):
            whitening = Whitening.of(features, first)
            seen = whitening(features)
            weights, whitened = edge_similarities(seen, indices), Strangers.of(seen, indices)
        labels, edges, threshold, rule = cluster(seen, weights, whitened)
        with timed(seconds, "edges"):
            connectivity = symmetrise((weights >= threshold).astype(np.float32), indices)
            densities = density(connectivity, weights)
            edges_similar, _ = distinct_pairs(edges)
        noise = noise_faces(labels, densities, self.min_cluster_size, self.density_threshold)
        no_edges, no_probability = np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32)
        return Clustering(
            labels,
            noise,
            connectivity,
            densities,
            no_edges,
            no_probability,
            edges_similar,
            threshold,
            1.0,
            rule,
            thresholds,
            seconds,
        )
