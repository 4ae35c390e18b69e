"""Rules of one threshold: edges of the kNN graph above it, and the clusters that these make."""

import importlib.util
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from lcde.clustering.communities import communities, infomap, louvain
from lcde.clustering.components import connected_labels
from lcde.clustering.edges import distinct_pairs, edges_above
from lcde.data.gallery import Gallery, KNNGraph
from lcde.distributed import broadcast, rank
from lcde.errors import InputError
from lcde.methods.method import Clustering, Details, Rule, Scores, ScoringModel, timed
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.settings import Within

CANDIDATES = 24  # thresholds that `choose_threshold` tries


@dataclass
class ThresholdRule(Rule):
    """Base class: a clustering of the kNN edges whose weight is at least a threshold; it is the similarity by default.

    A subclass with other clusters implements `_labels`; one with other weights, `weigh` and `candidates`.

    Attributes
    ----------
    threshold : float, optional
        None until `choose_threshold` has chosen it.
    """

    threshold: Annotated[float | None, Within(-1, 1)] = None

    def __call__(self, gallery: Gallery, scores: Scores | None = None) -> Clustering:
        seconds: dict[str, float] = {}
        with timed(seconds, "weights"):
            graph = self.weigh(gallery, scores)
        clustering = self.cut(gallery, graph, scores)
        return replace(clustering, seconds=seconds | clustering.seconds)

    def weigh(self, gallery: Gallery, scores: Scores | None) -> KNNGraph:
        """The kNN graph with the weights of its edges in place of their similarities: all but the threshold."""
        return gallery.graph

    def cut(self, gallery: Gallery, graph: KNNGraph, scores: Scores | None = None) -> Clustering:
        """The clustering by `threshold`, of ``graph`` as `weigh` gave it; few rules ask for ``scores`` of it again."""
        threshold, seconds = self.require_threshold(), dict[str, float]()
        with timed(seconds, "edges"):
            edges, weights = self._edges(graph, threshold)
        with timed(seconds, "components"):
            labels = self._labels(gallery, edges, weights)
        similar = distinct_pairs(edges)[0]
        return Clustering(labels, seconds, Details(edges_similar=similar, similarity_threshold=threshold))

    def require_threshold(self) -> float:
        """The threshold; raises `InputError` where there is none."""
        if self.threshold is None:
            raise InputError("clustering.threshold=null needs held-out identities to choose it on; set a threshold.")
        return self.threshold

    def candidates(self, graph: KNNGraph) -> np.ndarray:
        """Thresholds that `choose_threshold` tries: over the weights of ``graph`` but for the outermost 2 %."""
        lowest, highest = np.quantile(graph.similarities[:, 1:], [0.02, 0.98]).clip(-1, 1)
        return np.linspace(lowest, highest, CANDIDATES)

    def _edges(self, graph: KNNGraph, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Edges (M, 2) int64, from the face in whose row they are, and their weights (M,)."""
        return edges_above(graph, threshold)

    def _labels(self, gallery: Gallery, edges: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Labels (N,) int64 from 0, of ``edges`` (M, 2) with ``weights`` (M,); by default the connected components."""
        return connected_labels(edges, len(gallery))


@dataclass
class ComponentsRule(ThresholdRule):
    """Connected components of the thresholded kNN graph: single linkage."""


@dataclass
class ProbabilityRule(ThresholdRule):
    """Base class of rules whose edges are weighted by probabilities."""

    def candidates(self, graph: KNNGraph) -> np.ndarray:
        """Thresholds over the whole range."""
        return np.linspace(0.02, 0.98, CANDIDATES)


@dataclass
class MapEquationRule(ThresholdRule):
    """Communities of the thresholded kNN graph by the map equation, weighted by similarity.

    Attributes
    ----------
    num_trials : int
        Runs, of which the one of the shortest codelength counts.
    seed : int
    """

    num_trials: Annotated[int, Within(1)] = 3
    seed: Annotated[int, Within(0)] = 0

    search = staticmethod(louvain)

    def _labels(self, gallery: Gallery, edges: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return communities(edges, weights, len(gallery), self.num_trials, self.seed, self.search)


@dataclass
class InfomapRule(MapEquationRule):
    """As `MapEquationRule`, by the package ``infomap`` (GPL-3.0-or-later)."""

    search = staticmethod(infomap)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_infomap("infomap")


def require_infomap(choice: str) -> None:
    """Raise `InputError` where the package ``infomap``, which ``clustering=<choice>`` needs, is missing."""
    if importlib.util.find_spec("infomap") is None:
        raise InputError(f"clustering={choice} needs the package infomap; pip install 'lcde[infomap]'.")


def with_best_threshold(rule: ThresholdRule, gallery: Gallery, model: ScoringModel | None) -> ThresholdRule:
    """``rule`` with the threshold that is best on a labelled ``gallery``, by the scores of ``model`` if it needs any.

    For a rule that does, all processes of a job call this: the model runs on all of them.
    """
    if not rule.needs_scores:
        return replace(rule, threshold=choose_threshold(rule, gallery))
    assert model is not None
    scores, threshold = model.bind(gallery, rule.precision, False, None), None
    if rank() > 0:
        scores.serve()
    else:
        try:
            threshold = choose_threshold(rule, gallery, scores)
        finally:
            scores.dismiss()
    return replace(rule, threshold=broadcast(threshold))


def choose_threshold(rule: ThresholdRule, gallery: Gallery, scores: Scores | None = None) -> float:
    """The candidate threshold of ``rule`` with the best mean of pairwise and BCubed F on a labelled ``gallery``."""
    assert gallery.labels_true is not None
    labels_true, graph = gallery.labels_true, rule.weigh(gallery, scores)

    def quality(threshold: float) -> float:
        table = Contingency.of(labels_true, replace(rule, threshold=threshold).cut(gallery, graph, scores).labels)
        return pairwise(table).f_score + bcubed(table).f_score

    return max(rule.candidates(graph).tolist(), key=quality)
