"""LCDE's rule: connectivity, density, edges, clusters; and refinements that the paper does not have."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np

from lcde.clustering.assignment import assign_faces
from lcde.clustering.centroids import merge_similar
from lcde.clustering.components import connected_labels
from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import official_similarity_threshold, select_edges, values_of_edges
from lcde.clustering.impostors import Impostors
from lcde.clustering.joining import join_clusters
from lcde.clustering.splitting import WeightedGraph, split_weak_clusters
from lcde.clustering.whitening import transformed
from lcde.data.gallery import Gallery, KNNGraph
from lcde.data.knn import edge_similarities
from lcde.errors import InputError
from lcde.methods.method import Clustering, Details, Rule, Scores, timed
from lcde.methods.settings import Within, check_settings


@dataclass(frozen=True)
class State:
    """What a refinement starts from.

    Attributes
    ----------
    gallery : Gallery
    scores : Scores
    labels : (N,) int64
        Clusters so far, numbered from 0; -1 only for noise among known faces.
    joined : (M, 2) int64
        The edges that made the clusters.
    details : Details
        Empty where new faces are assigned.
    num_known : int
        That many faces had been clustered before, and must keep their labels; 0 unless new faces are assigned.
    """

    gallery: Gallery
    scores: Scores
    labels: np.ndarray
    joined: np.ndarray
    details: Details
    num_known: int = 0


class Refinement(ABC):
    """A step that changes the clusters of the paper's rule."""

    def __post_init__(self) -> None:
        check_settings(self, "refinements.*.")

    @abstractmethod
    def __call__(self, state: State) -> np.ndarray:
        """New labels (N,) int64, numbered from 0."""


@dataclass
class SplitWeakClusters(Refinement):
    """Split clusters whose communities are weakly linked (`lcde.clustering.splitting`); known clusters stay.

    Attributes
    ----------
    edges : int
        Edges between two communities of a cluster that PCENet is asked about. The communities stay together if their
        mean probability is above the rule's ``edge_threshold``.
    """

    edges: Annotated[int, Within(1)] = 16

    def __call__(self, state: State) -> np.ndarray:
        details = state.details
        if details.connectivity is None or details.edge_threshold is None:
            return state.labels
        graph = WeightedGraph(state.gallery.graph, details.connectivity)
        ask, threshold = state.scores.edge_probability, details.edge_threshold
        return split_weak_clusters(state.labels, state.joined, graph, self.edges, threshold, ask)


@dataclass
class MergeCentroids(Refinement):
    """Merge clusters that are more similar than impostors are, by features that these clusters whiten.

    Attributes
    ----------
    impostors_per_centroid : float
        Clusters merge if their centroids are above the similarity that so many impostors of a face are expected to
        reach.
    impostor_merges : float
        Clusters merge by average linkage above the similarity that so many of all pairs of clusters are expected to
        reach.
    """

    impostors_per_centroid: Annotated[float, Within(0)] = 0.0003
    impostor_merges: Annotated[float, Within(0)] = 0.1

    def __call__(self, state: State) -> np.ndarray:
        labels, indices = state.labels, state.gallery.graph.indices
        features = transformed(state.gallery, labels)
        graph = KNNGraph(indices, edge_similarities(features, indices))
        impostors = Impostors.of(features, labels, graph.similarities)
        threshold = impostors.similarity(self.impostors_per_centroid)
        return merge_similar(labels, features, graph, impostors, threshold, self.impostor_merges, state.num_known)


@dataclass
class LCDERule(Rule):
    """The paper's rule; with the default settings, labels are those of the published program.

    Attributes
    ----------
    similarity_threshold : float, optional
        τ of the similar edges; None takes the official one, the mean similarity to the 3 nearest neighbours.
    edge_threshold : float
        A density edge joins if its probability by PCENet is above this.
    min_connectivity : float
        Density edges of less connectivity are dropped without asking PCENet; 0 in the paper.
    ask_strong : bool
        Whether PCENet is also asked about density edges of s·c >= τ, as in the paper; unasked they join.
    refinements : mapping of str to Refinement, optional
        Steps after the rule, in this order; None entries are skipped. Names are for ``seconds`` and messages.
    precision : str
        Of the networks: "float32", or "auto" for bfloat16 where the device gains from it.

    References
    ----------
    Shin et al.: Local connectivity-based density estimation for face clustering. CVPR 2023, section 3.
    """

    similarity_threshold: Annotated[float | None, Within(-1, 1)] = None
    edge_threshold: Annotated[float, Within(0, 1)] = 0.5
    min_connectivity: Annotated[float, Within(0, 1)] = 0.0
    ask_strong: bool = True
    refinements: Mapping[str, Refinement | None] | None = None
    precision: Literal["float32", "auto"] = "float32"

    needs_scores = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refinements = {name: step for name, step in (self.refinements or {}).items() if step is not None}
        for name, step in self.refinements.items():
            if not isinstance(step, Refinement):
                raise InputError(f"clustering.refinements.{name}={step} must be a Refinement (_target_: …) or null.")

    def __call__(self, gallery: Gallery, scores: Scores | None) -> Clustering:
        assert scores is not None
        graph = gallery.graph
        seconds = {"connectivity": 0.0, "edges": 0.0, "pairs": 0.0, "components": 0.0}
        with timed(seconds, "connectivity"):
            directed = scores.connectivity()
        with timed(seconds, "edges"):
            connectivity = symmetrise(directed, graph.indices)
            del directed  # at millions of faces, gigabytes
            densities = density(connectivity, graph.similarities)
            tau = self._similarity_threshold(gallery)
            edges_density, edges_similar = select_edges(graph, connectivity, densities, tau)
            strength = values_of_edges(connectivity, edges_density, graph.indices)
            certain = np.zeros(len(strength), dtype=bool)
            if not self.ask_strong:
                similarity = values_of_edges(graph.similarities, edges_density, graph.indices)
                certain = similarity.astype(np.float64) * strength >= tau  # as precise as `select_edges`
            candidates = np.flatnonzero(~certain & (strength >= self.min_connectivity))
            candidates = candidates[np.argsort(-strength[candidates], kind="stable")]

        with timed(seconds, "components"):
            ask, asked = timed(seconds, "pairs")(scores.edge_probability), edges_density[candidates]
            joined = np.concatenate([edges_similar, edges_density[certain]])
            labels, answers = join_clusters(joined, asked, len(gallery), ask, self.edge_threshold)
            probability = np.full(len(edges_density), np.nan, dtype=np.float32)
            probability[candidates] = answers
            joined = np.concatenate([joined, asked[answers > self.edge_threshold]])
        seconds["components"] -= seconds["pairs"]
        details = Details(connectivity, densities, edges_density, probability, self.edge_threshold, edges_similar, tau)
        return Clustering(self._refine(State(gallery, scores, labels, joined, details), seconds), seconds, details)

    def assign(self, gallery: Gallery, known_labels: np.ndarray, scores: Scores | None) -> np.ndarray:
        """Labels of all faces of ``gallery``: ``known_labels`` of the first ones stay, the others are assigned to them.

        The edges of a new face with s·c >= τ connect it, and the one of largest s·c does if PCENet accepts it. New
        faces that these edges connect form a group; each face then joins the cluster or group with the largest total
        s·c (`assign_faces`), and refinements merge what is new.

        Parameters
        ----------
        gallery : Gallery
            N known faces followed by n new ones.
        known_labels : (N,) int64
            Numbered from 0, -1 for noise, which no face joins.
        scores : Scores
            Of ``gallery``.

        Returns
        -------
        (N + n,) int64
        """
        assert scores is not None
        num_known = len(known_labels)
        indices = gallery.graph.indices[num_known:]
        weights = gallery.graph.similarities[num_known:] * scores.connectivity(num_known)
        joins = weights >= self._similarity_threshold(gallery)
        rows, best = np.arange(len(indices)), 1 + weights[:, 1:].argmax(axis=1)
        strongest = np.stack([rows + num_known, indices[rows, best]], axis=1).astype(np.int64)
        joins[rows, best] = scores.edge_probability(strongest) > self.edge_threshold
        joins[:, 0] = False
        rows, columns = np.nonzero(joins & (weights > 0))
        edges = np.stack([rows + num_known, indices[rows, columns]], axis=1)
        groups = connected_labels(edges[edges[:, 1] >= num_known] - num_known, len(indices))
        labels = assign_faces(edges, weights[rows, columns], known_labels, groups)
        return self._refine(State(gallery, scores, labels, edges, Details(), num_known), {})

    def _similarity_threshold(self, gallery: Gallery) -> float:
        if self.similarity_threshold is not None:
            return self.similarity_threshold
        return official_similarity_threshold(gallery.graph.similarities)

    def _refine(self, state: State, seconds: dict[str, float]) -> np.ndarray:
        for name, step in (self.refinements or {}).items():
            with timed(seconds, name):
                state = replace(state, labels=step(state)) if step else state
        return state.labels
