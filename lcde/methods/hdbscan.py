"""HDBSCAN of the features."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from lcde.clustering.components import separate_noise
from lcde.data.gallery import Gallery
from lcde.methods.method import Clustering, Rule, Scores, timed
from lcde.settings import Within


@dataclass
class HDBSCANRule(Rule):
    """HDBSCAN by scikit-learn, of Euclidean distances of unit features; its noise becomes clusters of one face.

    It compares all pairs of faces: for tens of thousands at most.

    Attributes
    ----------
    smallest : int
        Faces of the smallest group that counts as a cluster, scikit-learn's ``min_cluster_size``.

    References
    ----------
    Campello, Moulavi, Sander: Density-based clustering based on hierarchical density estimates. PAKDD 2013.
    """

    smallest: Annotated[int, Within(2)] = 2

    def __call__(self, gallery: Gallery, scores: Scores | None = None) -> Clustering:
        from sklearn.cluster import HDBSCAN

        seconds: dict[str, float] = {}
        with timed(seconds, "components"):
            labels = np.full(len(gallery), -1)
            if len(gallery) >= self.smallest:
                labels = HDBSCAN(min_cluster_size=self.smallest, copy=True).fit_predict(gallery.features)
        return Clustering(separate_noise(labels), seconds)
