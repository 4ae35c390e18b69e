"""CDP: components of confident edges, those of too many faces with ever higher thresholds."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from lcde.clustering.components import connected_labels
from lcde.data.gallery import Gallery
from lcde.methods.classical import ThresholdRule
from lcde.settings import Within

ROUNDS = 100


@dataclass
class CDPRule(ThresholdRule):
    """The clustering of CDP with one model and without its mediator.

    Attributes
    ----------
    max_size : int
        Faces of the largest cluster.
    step : float
        Share of the way to 1 by which the threshold rises in a round.

    References
    ----------
    Zhan, Liu, Yan, Lin, Loy: Consensus-driven propagation in massive unlabeled data for face recognition. ECCV 2018.
    """

    max_size: Annotated[int, Within(1)] = 600
    step: Annotated[float, Within(0, 1)] = 0.05

    def _labels(self, gallery: Gallery, edges: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return bounded_components(edges, weights, len(gallery), self.max_size, self.step)


def bounded_components(
    edges: np.ndarray, weights: np.ndarray, num_faces: int, max_size: int, step: float
) -> np.ndarray:
    """Labels (N,) int64 from 0: connected components, split until none has more than ``max_size`` faces.

    In each round the threshold rises by ``step`` of its distance to 1, and edges below it inside components that are
    too large are dropped. After `ROUNDS` rounds, what is left too large stays.

    Parameters
    ----------
    edges : (M, 2) int64
    weights : (M,) float
        At most 1.
    """
    threshold = float(weights.min(initial=1))
    labels = connected_labels(edges, num_faces)
    for _ in range(ROUNDS):
        large = np.bincount(labels)[labels] > max_size
        if not large.any():
            break
        threshold += (1 - threshold) * step
        kept = ~large[edges[:, 0]] | (weights >= threshold)
        edges, weights = edges[kept], weights[kept]
        labels = connected_labels(edges, num_faces)
    return labels
