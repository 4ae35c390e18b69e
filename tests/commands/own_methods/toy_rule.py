"""A rule of one's own: neighbours that both find each other probable are joined."""

from dataclasses import dataclass

import numpy as np

from lcde.clustering.components import connected_labels
from lcde.clustering.density import symmetrise
from lcde.methods.method import Clustering, Details, Rule


@dataclass
class ProbableNeighbours(Rule):
    """Connected components of the kNN edges whose mean connectivity is above ``least``."""

    least: float
    needs_scores = True

    def __call__(self, gallery, scores):
        connectivity = symmetrise(scores.connectivity(), gallery.graph.indices)
        faces, columns = np.nonzero(connectivity > self.least)
        edges = np.stack([faces, gallery.graph.indices[faces, columns]], axis=1)
        return Clustering(connected_labels(edges, len(gallery)), details=Details(connectivity=connectivity))
