"""Chinese whispers: each face takes the cluster that weighs most among its neighbours."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from scipy.sparse import csr_matrix

from lcde.clustering.edges import distinct_pairs
from lcde.data.gallery import Gallery
from lcde.methods.classical import ThresholdRule
from lcde.progress import track
from lcde.settings import Within


@dataclass
class ChineseWhispersRule(ThresholdRule):
    """Chinese whispers on the thresholded kNN graph, weighted by similarity.

    Attributes
    ----------
    rounds : int
        Visits of every face, in random order; fewer where no face changes its cluster any more.
    seed : int
        Of the order.

    References
    ----------
    Biemann: Chinese whispers. TextGraphs 2006. Face clustering: Otto, Wang, Jain, IEEE TPAMI 2018, compares it.
    """

    rounds: Annotated[int, Within(1)] = 20
    seed: Annotated[int, Within(0)] = 0

    def _labels(self, gallery: Gallery, edges: np.ndarray, weights: np.ndarray) -> np.ndarray:
        pairs, position = distinct_pairs(edges)
        ends, weight = np.concatenate([pairs, pairs[:, ::-1]]), np.tile(weights[position], 2)
        graph = csr_matrix((weight, ends.T), shape=(len(gallery),) * 2)
        labels, rng = np.arange(len(gallery)), np.random.default_rng(self.seed)
        connected = np.flatnonzero(np.diff(graph.indptr))
        for _ in range(self.rounds):
            before = labels.copy()
            for face in track(rng.permutation(connected), "chinese whispers", len(connected) > 100_000):
                row = slice(graph.indptr[face], graph.indptr[face + 1])
                clusters, of_neighbour = np.unique(labels[graph.indices[row]], return_inverse=True)
                labels[face] = clusters[np.bincount(of_neighbour, graph.data[row]).argmax()]
            if np.array_equal(labels, before):
                break
        return np.unique(labels, return_inverse=True)[1]
