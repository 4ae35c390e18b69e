"""How an epoch's pairs of faces are drawn from a kNN graph."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import numpy as np

from lcde.clustering.density import density
from lcde.clustering.edges import select_edges
from lcde.data.gallery import KNNGraph
from lcde.settings import Within, check_settings


class PairSampler(Protocol):
    """Draws the pairs of an epoch.

    Attributes
    ----------
    reads_connectivity : bool
        Whether it reads the connectivity by the present model; else none is computed.
    """

    reads_connectivity: ClassVar[bool]

    def __call__(self, graph: KNNGraph, connectivity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw pairs (P, 2) int64 of neighbours; ``connectivity`` (N, K) is symmetrised."""


@dataclass(frozen=True)
class UniformPairs:
    """Every kNN edge is equally likely.

    Attributes
    ----------
    pairs_per_face : float
        Pairs per face and epoch.
    """

    pairs_per_face: Annotated[float, Within(0)]

    reads_connectivity = False

    def __post_init__(self) -> None:
        check_settings(self, "pairs.")

    def __call__(self, graph: KNNGraph, connectivity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """As `PairSampler`."""
        return _draw(graph.indices, np.ones_like(connectivity), round(self.pairs_per_face * len(graph)), rng)


@dataclass(frozen=True)
class MixedPairs:
    """Density edges, which PCENet judges at inference, mixed with edges that teach it more.

    All pairs are turned to lead to the denser end, as at inference.

    Attributes
    ----------
    density, uncertain, near : float
        Pairs per face and epoch: density edges E_d under the present connectivity; edges drawn in proportion to
        c·(1 - c), of which the model is least certain; edges to one of the `near_neighbours` most similar faces, where
        similar identities are.
    near_neighbours : int
    """

    density: Annotated[float, Within(0)]
    uncertain: Annotated[float, Within(0)]
    near: Annotated[float, Within(0)]
    near_neighbours: Annotated[int, Within(1)]

    reads_connectivity = True

    def __post_init__(self) -> None:
        check_settings(self, "pairs.")

    def __call__(self, graph: KNNGraph, connectivity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """As `PairSampler`."""
        indices, num_faces = graph.indices, len(graph)
        densities = density(connectivity, graph.similarities)
        edges_density, _ = select_edges(graph, connectivity, densities, np.inf)
        if not len(edges_density):  # all densities alike
            edges_density = indices[:, :2].astype(np.int64)
        near = np.zeros_like(connectivity)
        near[:, 1 : 1 + self.near_neighbours] = 1
        drawn = [
            edges_density[rng.integers(len(edges_density), size=round(self.density * num_faces))],
            _draw(indices, connectivity * (1 - connectivity), round(self.uncertain * num_faces), rng),
            _draw(indices, near, round(self.near * num_faces), rng),
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
