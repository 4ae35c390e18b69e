"""FaceMap: each list of neighbours cut where their similarity drops, then communities by the map equation."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from lcde.clustering.communities import communities
from lcde.data.gallery import Gallery, row_blocks
from lcde.errors import InputError
from lcde.methods.method import Clustering, Details, Rule, Scores, timed
from lcde.settings import Within


@dataclass
class FaceMapRule(Rule):
    """FaceMap, with communities by NetworKit.

    Attributes
    ----------
    window : int
        Drops between consecutive neighbours that are averaged; a face is linked to at least half as many neighbours.
    num_trials : int
        Runs of the community detection, of which the one of the shortest codelength counts.
    seed : int

    References
    ----------
    Yu, Yang, Wang, Xing, Yi, Lu, Wang: FaceMap: towards unsupervised face clustering via map equation.
    arXiv:2203.10090, 2022.
    """

    window: Annotated[int, Within(1)] = 20
    num_trials: Annotated[int, Within(1)] = 1
    seed: Annotated[int, Within(0)] = 0

    def __call__(self, gallery: Gallery, scores: Scores | None = None) -> Clustering:
        graph = gallery.graph
        if graph.k < self.window + 3:
            reason = f"clustering=facemap needs dataset.k of clustering.window={self.window} plus 3 or more"
            raise InputError(f"{reason}; the faces have {graph.k} neighbours.")
        seconds: dict[str, float] = {}
        with timed(seconds, "edges"):
            found = []
            for rows in row_blocks(len(graph)):
                walk = np.maximum(graph.similarities[rows, 1:], 0).astype(np.float64)
                walk /= np.maximum(walk.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
                linked = np.arange(walk.shape[1]) <= last_before_drop(walk, self.window)[:, None]
                faces, columns = np.nonzero(linked)
                edges = np.stack([faces + rows.start, graph.indices[rows][faces, columns + 1]], axis=1)
                found.append((np.sort(edges, axis=1), walk[faces, columns]))
            edges, weights = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
            edges, weights = added(edges, weights)
        with timed(seconds, "components"):
            labels = communities(edges, weights, len(gallery), self.num_trials, self.seed)
        return Clustering(labels, seconds, Details(edges_similar=edges))


def last_before_drop(walk: np.ndarray, window: int) -> np.ndarray:
    """Position (n,) in each row of ``walk`` (n, K - 1), probabilities in descending order, where they drop most.

    The mean of ``window`` consecutive drops is compared with mean and standard deviation of these and all later ones.
    """
    drops = walk[:, :-1] - walk[:, 1:]
    count = drops.shape[1] - np.arange(drops.shape[1])  # of a drop and all later ones
    mean, square = (np.cumsum(values[:, ::-1], axis=1)[:, ::-1] / count for values in (drops, drops**2))
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    sums = np.cumsum(np.pad(drops, ((0, 0), (1, 0))), axis=1)
    local = (sums[:, window:] - sums[:, :-window]) / window
    starts = local.shape[1]
    score = np.abs(local - mean[:, :starts]) / np.where(deviation[:, :starts] > 0, deviation[:, :starts], np.inf)
    return score.argmax(axis=1) + (window + 1) // 2


def added(edges: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each of ``edges`` (M, 2), the lower end first, once, with the sum of its ``weights`` (M,)."""
    key, of_edge = np.unique(edges[:, 0].astype(np.int64) << 32 | edges[:, 1], return_inverse=True)
    return np.stack([key >> 32, key & 0xFFFF_FFFF], axis=1), np.bincount(of_edge, weights)
