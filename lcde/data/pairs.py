"""How training pairs (i, j) are drawn from the kNN graph: each strategy is a choice of the `pairs` config group."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lcde.clustering.density import density
from lcde.clustering.edges import select_edges


class PairSampler(Protocol):
    def __call__(
        self, indices: np.ndarray, similarities: np.ndarray, connectivity: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draw one epoch's pairs (P, 2) int64 from a graph: indices, similarities, symmetrised connectivity (N, K)."""


@dataclass(frozen=True)
class UniformPairs:
    """Every kNN edge is equally likely."""

    pairs_per_face: float

    def __call__(
        self, indices: np.ndarray, similarities: np.ndarray, connectivity: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        return _draw(indices, np.ones_like(connectivity), round(self.pairs_per_face * len(indices)), rng)


@dataclass(frozen=True)
class MixedPairs:
    """What PCENet meets at inference, density edges, mixed with edges that teach it more.

    Each share is a number of pairs per face and epoch:
    density:    density edges E_d under the present connectivity
    uncertain:  edges drawn in proportion to c·(1 - c), the ones that LCENet is least sure of
    near:       edges to one of the `near_neighbours` most similar faces, where look-alikes are
    uniform:    any kNN edge
    All pairs are turned to lead to the denser end, as at inference.
    """

    density: float
    uncertain: float
    near: float
    near_neighbours: int
    uniform: float

    def __call__(
        self, indices: np.ndarray, similarities: np.ndarray, connectivity: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        num_faces = len(indices)
        densities = density(connectivity, similarities)
        edges_density, _ = select_edges(indices, similarities, connectivity, densities, np.inf)
        if not len(edges_density):  # all densities alike
            edges_density = indices[:, :2].astype(np.int64)
        near = np.zeros_like(connectivity)
        near[:, 1 : 1 + self.near_neighbours] = 1
        drawn = [
            edges_density[rng.integers(len(edges_density), size=round(self.density * num_faces))],
            _draw(indices, connectivity * (1 - connectivity), round(self.uncertain * num_faces), rng),
            _draw(indices, near, round(self.near * num_faces), rng),
            _draw(indices, np.ones_like(connectivity), round(self.uniform * num_faces), rng),
        ]
        pairs = np.concatenate(drawn)
        backwards = densities[pairs[:, 0]] > densities[pairs[:, 1]]
        pairs[backwards] = pairs[backwards, ::-1]
        return pairs


def _draw(indices: np.ndarray, weight: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``count`` edges (count, 2) in proportion to ``weight`` (N, K), never an edge to the face itself.

    Where no edge has any weight, all are equally likely.
    """
    others = indices != np.arange(len(indices))[:, None]
    cumulative = np.cumsum(np.where(others, weight.clip(0), 0), dtype=np.float64)
    if not cumulative[-1]:
        cumulative = np.cumsum(others, dtype=np.float64)
    drawn = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    rows, columns = np.unravel_index(drawn, indices.shape)
    return np.stack([rows, indices[rows, columns]], axis=1).astype(np.int64)
