"""How the thresholds of a clustering come from its faces: kept with it, they grow with the gallery."""

from dataclasses import dataclass

import numpy as np

from lcde.clustering.centroids import CentroidRule
from lcde.clustering.edges import official_similarity_threshold
from lcde.clustering.strangers import Strangers


@dataclass(frozen=True)
class ThresholdRule:
    """Where edges join faces, and where centroids join clusters.

    similarity_threshold:  of edges; None leaves it to the next
    strangers_per_face:    edges of similarities that more strangers reach do not join; None takes the official rule,
        the mean similarity to the 3 nearest neighbours
    strangers_per_centroid:  the same for centroids, None where clusters do not merge
    """

    similarity_threshold: float | None
    strangers_per_face: float | None
    strangers_per_centroid: float | None

    def of(self, features: np.ndarray, similarities: np.ndarray) -> tuple[float, CentroidRule | None]:
        """The threshold of edges and the rule for centroids, of unit ``features`` (N, D) with a graph (N, K)."""
        threshold, rule = self.similarity_threshold, None
        if self.strangers_per_face is not None or self.strangers_per_centroid is not None:
            strangers = Strangers.of(features, similarities)
            if self.strangers_per_centroid is not None:
                rule = CentroidRule.of(strangers, self.strangers_per_centroid)
            if threshold is None and self.strangers_per_face is not None:
                threshold = strangers.similarity(self.strangers_per_face)
        return official_similarity_threshold(similarities) if threshold is None else threshold, rule
