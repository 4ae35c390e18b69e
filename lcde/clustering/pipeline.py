"""LCDE's clustering: kNN graph and networks → connectivity → density → edges → clusters → merged clusters."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lcde.clustering.centroids import CentroidRule
from lcde.clustering.components import noise_faces
from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import select_edges, values_of_edges
from lcde.clustering.joining import join_clusters
from lcde.clustering.opinions import second_opinions
from lcde.clustering.strangers import Strangers
from lcde.clustering.thresholds import ThresholdRule


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
    edges_density:    (M, 2) int64; edge_probability: (M,) float32, NaN where joining did not ask PCENet
    edges_similar:    (L, 2) int64
    similarity_threshold, edge_threshold:  of the similar edges and of the probability, as they were used; without
        networks, the former is of whitened similarities
    centroid_rule:    by which clusters merged in the end, None where they did not
    thresholds:       from which both came, for when the gallery grows
    seconds:          time of each stage
    edges_parted:     (P, 2) int64, edges that joined crowds which second opinions parted
    """

    labels: np.ndarray
    noise: np.ndarray
    connectivity: np.ndarray
    density: np.ndarray
    edges_density: np.ndarray
    edge_probability: np.ndarray
    edges_similar: np.ndarray
    similarity_threshold: float
    edge_threshold: float
    centroid_rule: CentroidRule | None
    thresholds: ThresholdRule
    seconds: dict[str, float] = field(default_factory=dict)
    edges_parted: np.ndarray = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))

    @property
    def kept(self) -> np.ndarray:
        """(M,) bool, density edges within a cluster that PCENet accepts or was not asked about."""
        connected = np.equal(*self.labels[self.edges_density].T)
        return connected & ~(self.edge_probability <= self.edge_threshold)


@dataclass(frozen=True)
class LCDEClustering:
    """The published decision rule, and what is put to it.

    similarity_threshold: τ of the similar edges; None takes the official rule, the mean similarity to the 3 nearest
        neighbours.
    edge_threshold: a density edge joins where PCENet's probability is above it.
    ask_strong: whether PCENet is asked about density edges of s·c >= τ, too; unasked they join, as similar edges do.
    second_opinions: about how many edges between two communities of a cluster PCENet is asked, if LCENet does not see
        them as one; they part where the mean is not above ``edge_threshold``.
    min_connectivity: density edges of less connectivity are dropped without asking PCENet. At 0, with
        ``ask_strong`` and no ``second_opinions``, labels are those of the published program.
    strangers_per_centroid: clusters merge in the end where their centroids are more similar than so many strangers of
        a face are expected to be; None leaves them, as the published program does.
    precision: that the networks are to run in, "float32", or "auto" for a lower one where the device gains from it.
    min_cluster_size, density_threshold: faces of smaller clusters and of lower density are noise; the clusters
        themselves do not change.
    """

    similarity_threshold: float | None = None
    edge_threshold: float = 0.5
    ask_strong: bool = True
    second_opinions: int = 0
    min_connectivity: float = 0.0
    strangers_per_centroid: float | None = None
    precision: str = "float32"
    density_threshold: float | None = None
    min_cluster_size: int = 1

    def __call__(
        self, features: np.ndarray, indices: np.ndarray, similarities: np.ndarray, networks: Networks
    ) -> Clustering:
        """Cluster unit ``features`` (N, D) float32 with their kNN graph (N, K): ``indices`` int32, ``similarities``."""
        seconds: dict[str, float] = {}
        with timed(seconds, "connectivity"):
            directed = networks.connectivity()
        with timed(seconds, "edges"):
            connectivity = symmetrise(directed, indices)
            del directed  # at millions of faces, gigabytes
            densities = density(connectivity, similarities)
            thresholds = ThresholdRule(self.similarity_threshold, None, self.strangers_per_centroid)
            threshold = thresholds.edges(similarities)
            edges_density, edges_similar = select_edges(indices, similarities, connectivity, densities, threshold)
        seconds["pairs"] = 0.0

        def ask(edges: np.ndarray) -> np.ndarray:
            with timed(seconds, "pairs"):
                return networks.edge_probability(edges)

        with timed(seconds, "components"):
            strength = values_of_edges(connectivity, edges_density, indices)
            certain = np.zeros(len(strength), dtype=bool)
            if not self.ask_strong:
                similarity = values_of_edges(similarities, edges_density, indices)
                certain = similarity.astype(np.float64) * strength >= threshold  # as precise as `select_edges`
            labels, edge_probability = join_clusters(
                edges_density,
                edges_similar,
                strength,
                certain,
                len(indices),
                ask,
                self.edge_threshold,
                self.min_connectivity,
            )
            accepted = edges_density[certain | (edge_probability > self.edge_threshold)]
            joined = np.concatenate([edges_similar, accepted])
            if self.second_opinions:
                graph = indices, similarities, connectivity
                labels = second_opinions(labels, joined, graph, self.second_opinions, self.edge_threshold, ask)
            parted = joined[np.not_equal(*labels[joined].T)]
        seconds["components"] -= seconds["pairs"]
        rule = None
        if self.strangers_per_centroid is not None:
            with timed(seconds, "centroids"):
                strangers = Strangers.of(features, indices)
                rule = thresholds.centroids(strangers, strangers)
                labels = rule.merge(labels, features, rule.edges(labels, indices, similarities))
        noise = noise_faces(labels, densities, self.min_cluster_size, self.density_threshold)
        edges = edges_density, edge_probability, edges_similar
        used = threshold, self.edge_threshold, rule, thresholds
        return Clustering(labels, noise, connectivity, densities, *edges, *used, seconds, parted)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add to ``seconds`` how long the block took."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
