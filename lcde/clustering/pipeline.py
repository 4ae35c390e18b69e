"""LCDE's clustering: kNN graph and networks → connectivity → density → edges → clusters."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lcde.clustering.components import connected_labels, noise_faces
from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import official_similarity_threshold, select_edges


class Networks(Protocol):
    """The two networks as functions of one kNN graph."""

    def connectivity(self, first_row: int = 0) -> np.ndarray:
        """(N - first_row, K) float32 connectivity to its neighbours of each face from ``first_row`` on."""

    def edge_probability(self, edges: np.ndarray) -> np.ndarray:
        """(M,) float32 probability that each of ``edges`` (M, 2) joins one identity."""


@dataclass(frozen=True)
class Clustering:
    """Labels and every intermediate result.

    labels:           (N,) int64, consecutive from 0, every face in a cluster
    noise:            (N,) bool, faces that the settings call noise; `label_noise` gives them -1
    connectivity:     (N, K) float32, symmetrised
    density:          (N,) float64
    edges_density:    (M, 2) int64; edge_probability: (M,) float32
    edges_similar:    (L, 2) int64
    seconds:          time of each stage
    """

    labels: np.ndarray
    noise: np.ndarray
    connectivity: np.ndarray
    density: np.ndarray
    edges_density: np.ndarray
    edge_probability: np.ndarray
    edges_similar: np.ndarray
    similarity_threshold: float
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LCDEClustering:
    """The published decision rule.

    similarity_threshold: τ of the similar edges; None takes the official rule, the mean similarity to the 3 nearest
        neighbours.
    edge_threshold: a density edge joins where PCENet's probability is above it.
    min_cluster_size, density_threshold: faces of smaller clusters and of lower density are noise; the clusters
        themselves do not change.
    """

    similarity_threshold: float | None = None
    edge_threshold: float = 0.5
    density_threshold: float | None = None
    min_cluster_size: int = 1

    def __call__(self, indices: np.ndarray, similarities: np.ndarray, networks: Networks) -> Clustering:
        """Cluster a kNN graph: ``indices`` (N, K) int32, ``similarities`` (N, K) float32."""
        seconds: dict[str, float] = {}
        with timed(seconds, "connectivity"):
            directed = networks.connectivity()
        with timed(seconds, "edges"):
            connectivity = symmetrise(directed, indices)
            densities = density(connectivity, similarities)
            threshold = self.similarity_threshold
            if threshold is None:
                threshold = official_similarity_threshold(similarities)
            edges_density, edges_similar = select_edges(indices, similarities, connectivity, densities, threshold)
        with timed(seconds, "pairs"):
            edge_probability = networks.edge_probability(edges_density)
        with timed(seconds, "components"):
            joined = edges_density[edge_probability > self.edge_threshold]
            labels = connected_labels(np.concatenate([joined, edges_similar]), len(indices))
        noise = noise_faces(labels, densities, self.min_cluster_size, self.density_threshold)
        return Clustering(
            labels, noise, connectivity, densities, edges_density, edge_probability, edges_similar, threshold, seconds
        )


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note in ``seconds`` how long the block took."""
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
