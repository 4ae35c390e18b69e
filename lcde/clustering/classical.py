"""Methods that need no training, to stand beside LCDE: a kNN graph in, labels out."""

import tempfile
from pathlib import Path
from typing import Protocol

import infomap
import numpy as np
from scipy.sparse import coo_matrix

from lcde.clustering.components import connected_labels
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
        return connected_labels(_edges_above(indices, similarities, threshold)[0], len(indices))


class Infomap:
    """Communities of the thresholded kNN graph weighted by similarity (map equation, Rosvall et al. 2009)."""

    def __init__(self, threshold: float | None, num_trials: int, seed: int) -> None:
        """The best of ``num_trials`` runs counts: one alone now and then merges two large identities."""
        self.threshold = threshold
        self.num_trials = num_trials
        self.seed = seed

    def __call__(self, indices: np.ndarray, similarities: np.ndarray, threshold: float) -> np.ndarray:
        edges, weights = _edges_above(indices, similarities, threshold)
        if not len(edges):
            return np.arange(len(indices))
        graph = coo_matrix((weights, (edges[:, 0], edges[:, 1])), shape=(len(indices), len(indices)))
        seed = self.seed + 1  # Infomap counts seeds from 1
        result = infomap.run(graph, two_level=True, num_trials=self.num_trials, seed=seed)
        # Not result.modules(): its iterators are SWIG objects, which FAISS's SWIG types take over and crash.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "modules.clu"
            result.write_clu(path)
            faces, modules = np.loadtxt(path, dtype=np.int64, usecols=(0, 1), unpack=True)
        labels = np.empty(len(indices), dtype=np.int64)
        labels[faces] = np.unique(modules, return_inverse=True)[1]
        return labels


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


def _edges_above(indices: np.ndarray, similarities: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """kNN edges (M, 2) of at least ``threshold`` and positive similarity, and their similarities (M,)."""
    rows, columns = np.nonzero(similarities[:, 1:] >= max(threshold, np.finfo(np.float32).tiny))
    return np.stack([rows, indices[rows, columns + 1]], axis=1), similarities[rows, columns + 1]
