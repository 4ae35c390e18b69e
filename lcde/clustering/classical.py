"""Methods that need no training, to stand beside LCDE: a kNN graph in, labels out."""

from typing import Protocol

import numpy as np

from lcde.clustering.communities import communities
from lcde.clustering.components import connected_labels
from lcde.clustering.edges import edges_above
from lcde.metrics import Contingency, bcubed, pairwise

CANDIDATES = 24  # thresholds tried when one is chosen on the training part


class ThresholdMethod(Protocol):
    """A clustering of a kNN graph whose only setting is the least similarity of an edge; None until it is chosen."""

    threshold: float | None

    def __call__(self, indices: np.ndarray, similarities: np.ndarray, threshold: float) -> np.ndarray:
        """Cluster a graph (N, K) by its edges of at least ``threshold``: labels (N,) int64 from 0."""


class ThresholdComponents:
    """Connected components of the kNN edges at least as similar as the threshold: single linkage on the kNN graph."""

    def __init__(self, threshold: float | None) -> None:
        self.threshold = threshold

    def __call__(self, indices: np.ndarray, similarities: np.ndarray, threshold: float) -> np.ndarray:
        return connected_labels(edges_above(indices, similarities, threshold)[0], len(indices))


class Infomap:
    """Communities of the thresholded kNN graph weighted by similarity."""

    def __init__(self, threshold: float | None, num_trials: int, seed: int) -> None:
        self.threshold = threshold
        self.num_trials = num_trials
        self.seed = seed

    def __call__(self, indices: np.ndarray, similarities: np.ndarray, threshold: float) -> np.ndarray:
        edges, weights = edges_above(indices, similarities, threshold)
        return communities(edges, weights, len(indices), self.num_trials, self.seed)


def choose_threshold(
    method: ThresholdMethod, indices: np.ndarray, similarities: np.ndarray, labels_true: np.ndarray
) -> float:
    """The threshold with the best mean of pairwise and BCubed F on a labelled (training) graph.

    Candidates are evenly spaced over the similarities of the graph, its lowest and highest 2 % left out.
    """
    candidates = np.linspace(*np.quantile(similarities[:, 1:], [0.02, 0.98]), CANDIDATES)

    def quality(threshold: float) -> float:
        table = Contingency.of(labels_true, method(indices, similarities, threshold))
        return pairwise(table).f_score + bcubed(table).f_score

    return float(max(candidates, key=quality))
