"""FC-ES: edges weighted by shared neighbours, each list of neighbours cut at the first weak one, then Infomap."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from lcde.clustering.communities import infomap
from lcde.clustering.shared_neighbours import sums_over_shared
from lcde.data.gallery import Gallery, KNNGraph
from lcde.methods.classical import CANDIDATES, ThresholdRule, require_infomap
from lcde.methods.method import Scores
from lcde.settings import Within

TEMPERATURE = 0.5  # of the squared distance 2 - 2s


@dataclass
class FCESRule(ThresholdRule):
    """FC-ES, by the package ``infomap`` (GPL-3.0-or-later).

    A face is linked to its neighbours, nearest first, up to the first one whose neighbour-based edge probability is
    below the threshold; the communities are those of the directed links.

    Attributes
    ----------
    num_trials : int
        Runs of Infomap, of which the one of the shortest codelength counts.
    seed : int

    References
    ----------
    Liu: Face clustering via early stopping and edge recall. arXiv:2408.13431, 2024.
    """

    num_trials: Annotated[int, Within(1)] = 1
    seed: Annotated[int, Within(0)] = 0

    choice = "fces"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_infomap(self.choice)

    def weigh(self, gallery: Gallery, scores: Scores | None) -> KNNGraph:
        """Edges weighted by `edge_probability`, neighbours in the order of their similarity."""
        return KNNGraph(gallery.graph.indices, edge_probability(gallery.graph))

    def candidates(self, graph: KNNGraph) -> np.ndarray:
        """Thresholds of the edge probability, which has another range than similarities."""
        return np.linspace(0.05, 0.75, CANDIDATES)

    def _edges(self, graph: KNNGraph, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        links = listed(graph, threshold)
        return pairs_of(graph, links), graph.similarities[links]

    def _labels(self, gallery: Gallery, edges: np.ndarray, weights: np.ndarray) -> np.ndarray:
        num_faces = len(gallery)
        alone = -1 - np.arange(num_faces)
        if not len(edges):
            return np.arange(num_faces)
        modules = infomap(edges, weights, num_faces, self.num_trials, self.seed, directed=True)
        links = np.bincount(edges[:, 0], minlength=num_faces)
        return np.unique(np.where(links > 0, modules, alone), return_inverse=True)[1]


def listed(graph: KNNGraph, threshold: float) -> np.ndarray:
    """Which edges come before the first one of their row below ``threshold``: (N, K) bool, none to the face itself."""
    return np.pad(np.logical_and.accumulate(graph.similarities[:, 1:] >= threshold, axis=1), ((0, 0), (1, 0)))


def pairs_of(graph: KNNGraph, chosen: np.ndarray) -> np.ndarray:
    """The ``chosen`` edges (N, K) as pairs (M, 2) int64, from the face in whose row they are."""
    return np.stack([np.nonzero(chosen)[0], graph.indices[chosen]], axis=1).astype(np.int64)


def edge_probability(graph: KNNGraph) -> np.ndarray:
    """Neighbour-based edge probability of each edge: (N, K) float32.

    P_im = exp(-(2 - 2 s_im) / 0.5), normalised over the neighbours m of i, itself included; the probability of (i, j)
    is half the sum of P_im + P_jm over the neighbours m that i and j share.
    """
    walk = np.exp((2 * np.clip(graph.similarities, 0, 1) - 2) / TEMPERATURE)
    walk /= walk.sum(axis=1, keepdims=True)
    ones = np.ones_like(walk)
    own, of_neighbour = (sums_over_shared(*factors, graph.indices) for factors in ((walk, ones), (ones, walk)))
    return (own + of_neighbour) / 2
