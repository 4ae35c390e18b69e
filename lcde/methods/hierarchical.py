"""Agglomerative clustering by average linkage."""

from dataclasses import dataclass

import numpy as np

from lcde.clustering.merging import Merging
from lcde.data.gallery import Gallery, KNNGraph
from lcde.methods.classical import ThresholdRule


@dataclass
class AverageLinkageRule(ThresholdRule):
    """Clusters merge while the mean similarity of their faces is above a threshold, most similar ones first.

    Only clusters that a kNN edge connects are compared, so that millions of faces can be clustered; with N neighbours
    it is agglomerative clustering by average linkage of cosine similarities.
    """

    def _edges(self, graph: KNNGraph, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        return np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32)  # no edge joins two faces by itself

    def _labels(self, gallery: Gallery, edges: np.ndarray, weights: np.ndarray) -> np.ndarray:
        least = self.threshold
        assert least is not None
        merging = Merging(np.arange(len(gallery)), gallery.features, gallery.graph, compared=-1)
        merging.by_average(lambda _: least)
        return merging.labels
