"""What a method is: a rule that clusters a gallery, and a trained model whose scores the rule may ask for."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np

from lcde.data.gallery import Gallery, KNNGraph
from lcde.distributed import broadcast, rank
from lcde.errors import InputError
from lcde.settings import Within, check_settings


class Scores:
    """What a trained model says of one gallery; a rule asks for one of these, and not every model gives all.

    In a job of several processes rank 0 asks, the others serve.
    """

    def connectivity(self, first_row: int = 0) -> np.ndarray:
        """Probability that neighbours are of the face's own identity, for the faces from ``first_row`` on.

        Returns
        -------
        (N - first_row, K) float32
            Not symmetrised.
        """
        raise InputError("the model gives no connectivity of faces; choose another clustering=….")

    def embedding(self) -> np.ndarray:
        """What the model makes of each face and its neighbours: (N, E) float32."""
        raise InputError("the model gives no values of single faces; choose another clustering=….")

    def edge_probability(self, edges: np.ndarray) -> np.ndarray:
        """Probability that the two ends of each of ``edges`` (M, 2) int64 are of one identity: (M,) float32."""
        raise InputError("the model gives no edge probabilities; choose another clustering=….")

    def linkage(self, features: np.ndarray, graph: KNNGraph) -> np.ndarray:
        """Probability that neighbours are of one identity, in a graph of nodes that the rule made.

        Parameters
        ----------
        features : (M, E) float32
            As the model takes them.
        graph : KNNGraph
            Of the M nodes.

        Returns
        -------
        (M, K) float32
        """
        raise InputError("the model gives no linkage of nodes; choose another clustering=….")

    def identity_overlap(self, clusters: Sequence[np.ndarray]) -> np.ndarray:
        """IoU (P,) float32, estimated, of ``clusters``, faces in ascending order, with the identity of most faces."""
        raise InputError("the model judges no clusters; choose another clustering=….")

    def merge_probability(self, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probability that clusters are of one identity.

        Parameters
        ----------
        features : (N, D) float32
            Unit length.
        labels : (N,) int64
            Clusters from 0, without gaps.

        Returns
        -------
        indices : (C, K) int32
            The nearest clusters of each, itself first.
        probability : (C, K) float32
        """
        raise InputError("the model gives no probabilities of merges; choose another clustering=….")

    def serve(self) -> None:
        """Compute this rank's share of everything that rank 0 asks for, until it calls `dismiss`."""
        broadcast(None)

    def dismiss(self) -> None:
        """Let the other ranks leave `serve`."""
        broadcast(None)


class ScoringModel(Protocol):
    """A trained model as a method sees it; `lcde.models.base.Model` is one."""

    def bind(self, gallery: Gallery, precision: str, show_progress: bool, score_cache: Path | None) -> Scores:
        """Scores of ``gallery``, which are kept in the folder ``score_cache`` if there is one."""


@dataclass(frozen=True)
class Details:
    """Intermediate results of a clustering that a report can show; None where a method has no such thing.

    Attributes
    ----------
    connectivity : (N, K) float32
        Symmetrised.
    density : (N,) float64
    edges_density : (M, 2) int64
        From each face to its best denser neighbour.
    edge_probability : (M,) float32
        Of ``edges_density``, NaN where the model was not asked.
    edge_threshold : float
        A density edge joins above this probability.
    edges_similar : (L, 2) int64
        Edges that join by their similarity alone.
    similarity_threshold : float
        The threshold of ``edges_similar``, of the weights that the method compares.
    """

    connectivity: np.ndarray | None = None
    density: np.ndarray | None = None
    edges_density: np.ndarray | None = None
    edge_probability: np.ndarray | None = None
    edge_threshold: float | None = None
    edges_similar: np.ndarray | None = None
    similarity_threshold: float | None = None


@dataclass(frozen=True)
class Clustering:
    """What a rule gives for one gallery.

    Attributes
    ----------
    labels : (N,) int64
        Clusters numbered from 0 without gaps; every face is in one.
    seconds : dict of str to float
        Time of each stage.
    details : Details
        What a report can show.
    noise : (N,) bool, optional
        Faces of small or sparse clusters, by the rule's ``min_cluster_size`` and ``density_threshold``; set by
        `Method.cluster`. `lcde.clustering.components.label_noise` gives them label -1.
    """

    labels: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    details: Details = Details()
    noise: np.ndarray | None = None


@dataclass
class Rule(ABC):
    """Base class of decision rules: a gallery, and scores where a model is given, in; a clustering out.

    Attributes
    ----------
    min_cluster_size : int
        Faces of smaller clusters are noise.
    density_threshold : float, optional
        Faces of lower density are noise.
    needs_scores : bool
        Class attribute: whether the rule asks a trained model.
    has_density : bool
        Class attribute: whether its details hold the density of each face; others refuse a ``density_threshold``.
    precision : str
        Precision that the model runs in: "float32", or "auto" for bfloat16 where the device gains from it.
    """

    min_cluster_size: Annotated[int, Within(1)] = field(default=1, kw_only=True)
    density_threshold: Annotated[float | None, Within(0)] = field(default=None, kw_only=True)

    needs_scores = False
    has_density = False
    precision = "float32"

    def __post_init__(self) -> None:
        check_settings(self, "clustering.")
        least = self.density_threshold
        if least is not None and not self.has_density:
            raise InputError(
                f"clustering.density_threshold={least} must be null: {type(self).__name__} has no density."
            )

    @abstractmethod
    def __call__(self, gallery: Gallery, scores: Scores | None) -> Clustering:
        """Cluster ``gallery``; ``scores`` are None unless the rule ``needs_scores``."""


@dataclass(frozen=True)
class Method:
    """A rule with the trained model that it asks, if any.

    Attributes
    ----------
    name : str
        What tables and files call it: the choice of ``clustering=`` that made the rule.
    rule : Rule
    model : ScoringModel, optional
    score_cache : Path, optional
        Folder where the model's scores are kept by content, so that other thresholds do not run the networks again.
    """

    name: str
    rule: Rule
    model: ScoringModel | None = None
    score_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.rule.needs_scores and self.model is None:
            raise InputError(f"clustering={self.name} needs trained networks; set checkpoint=… or another clustering.")

    def cluster(self, gallery: Gallery, show_progress: bool = False) -> Clustering | None:
        """Cluster ``gallery``.

        All processes of a job call this: the model runs on all of them, the rule on rank 0.

        Returns
        -------
        Clustering or None
            None on all ranks but 0.
        """
        clustering = self._cluster(gallery if gallery.union is None else gallery.union, show_progress)
        if clustering is not None and gallery.union is not None:
            density, rows = clustering.details.density, slice(len(gallery))
            labels = np.unique(clustering.labels[rows], return_inverse=True)[1]
            details = Details(density=None if density is None else density[rows])  # the others name faces of the union
            clustering = replace(clustering, labels=labels, details=details)
        return None if clustering is None else self._with_noise(clustering)

    def _cluster(self, gallery: Gallery, show_progress: bool) -> Clustering | None:
        if self.model is None or not self.rule.needs_scores:
            return self.rule(gallery, None) if rank() == 0 else None
        scores = self.model.bind(gallery, self.rule.precision, show_progress, self.score_cache)
        if rank() > 0:
            scores.serve()
            return None
        try:
            return self.rule(gallery, scores)
        finally:
            scores.dismiss()

    def _with_noise(self, clustering: Clustering) -> Clustering:
        labels, density, least = clustering.labels, clustering.details.density, self.rule.density_threshold
        noise = np.bincount(labels)[labels] < self.rule.min_cluster_size
        if least is not None:
            assert density is not None  # the rule has_density
            noise |= density < least
        return replace(clustering, noise=noise)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the duration of the block to ``seconds[stage]``."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
