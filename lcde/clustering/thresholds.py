"""How the thresholds of a clustering come from its faces: kept with it, they grow with the gallery."""

from dataclasses import dataclass

import numpy as np

from lcde.clustering.centroids import CentroidRule
from lcde.clustering.edges import official_similarity_threshold
from lcde.clustering.strangers import Strangers

COMPARED = 10  # strangers a face: clusters are compared that a kNN edge joins which so many reach


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

    def edges(self, similarities: np.ndarray, strangers: Strangers | None = None) -> float:
        """The threshold of edges of ``similarities`` (N, K); only `strangers_per_face` takes ``strangers``."""
        if self.similarity_threshold is not None:
            return self.similarity_threshold
        if self.strangers_per_face is None:
            return official_similarity_threshold(similarities)
        return strangers.similarity(self.strangers_per_face)

    def centroids(self, strangers: Strangers, seen: Strangers) -> CentroidRule | None:
        """The rule for centroids, of ``strangers`` as they are in the kNN graph and as centroids are ``seen``."""
        if self.strangers_per_centroid is None:
            return None
        return CentroidRule(seen.similarity(self.strangers_per_centroid), strangers.similarity(COMPARED))
