"""Spherical k-means with a given number of clusters."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from lcde.data.gallery import Gallery
from lcde.errors import InputError
from lcde.methods.method import Clustering, Rule, Scores, timed
from lcde.settings import Within


@dataclass
class KMeansRule(Rule):
    """Spherical k-means by FAISS.

    Attributes
    ----------
    num_clusters : int, optional
        Number of clusters; None takes the number of identities of a labelled gallery.
    rounds : int
        Of assignment and new means.
    seed : int
    """

    num_clusters: Annotated[int | None, Within(1)] = None
    rounds: Annotated[int, Within(1)] = 25
    seed: Annotated[int, Within(0)] = 0

    def __call__(self, gallery: Gallery, scores: Scores | None = None) -> Clustering:
        import faiss

        count = self.num_clusters
        if count is None:
            if gallery.labels_true is None:
                raise InputError("clustering.num_clusters=null needs labels that tell the number; set a number.")
            count = len(np.unique(gallery.labels_true))
        seconds: dict[str, float] = {}
        with timed(seconds, "components"):
            settings = {"niter": self.rounds, "seed": self.seed, "spherical": True, "min_points_per_centroid": 1}
            means = faiss.Kmeans(gallery.features.shape[1], min(count, len(gallery)), **settings)
            means.train(gallery.features)
            labels = np.unique(means.assign(gallery.features)[1], return_inverse=True)[1]
        return Clustering(labels, seconds)
