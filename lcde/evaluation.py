"""Cluster a part by one method and score it: what the callback, train.py and eval.py all call."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from lcde.clustering.classical import ThresholdMethod, choose_threshold
from lcde.clustering.pipeline import Clustering, LCDEClustering, Networks, timed
from lcde.clustering.unsupervised import Unsupervised
from lcde.data.part import Part
from lcde.distributed import rank
from lcde.metrics import Contingency, Score, bcubed, nmi, pairwise
from lcde.models.score_cache import CachedScores
from lcde.models.scoring import GraphScorer
from lcde.progress import track
from lcde.saved_clustering import SavedClustering


@dataclass(frozen=True)
class Result:
    """One method on one part; the scores are None where identities are unknown.

    labels:          (N,) int64 from 0, the clusters that were scored; those of assigned faces may leave numbers out
    noise:           (N,) bool, faces that the settings call noise, None where the method has no such settings
    seconds:         time of each stage and "total"
    peak_memory_mb:  largest memory of the process so far, None on Windows
    """

    part: str
    method: str
    labels: np.ndarray
    noise: np.ndarray | None
    pairwise: Score | None
    bcubed: Score | None
    nmi: float | None
    seconds: dict[str, float]
    peak_memory_mb: float | None

    @property
    def num_clusters(self) -> int:
        return int(np.count_nonzero(np.bincount(self.labels)))


def evaluate_lcde(
    part: Part,
    networks: tuple[nn.Module, nn.Module],
    clustering: LCDEClustering,
    show_progress: bool,
    score_cache: Path | None = None,
) -> tuple[Result, Clustering] | None:
    """Cluster ``part`` with LCENet and PCENet, on the device they are on; their outputs are kept in ``score_cache``.

    All processes of a job call this: the networks run on all of them, clustering on rank 0, the others get None.
    """
    scorer = GraphScorer(*networks, part.features, part.indices, clustering.precision, show_progress)
    if rank() > 0:
        return scorer.serve()
    try:
        scores = scorer if score_cache is None else CachedScores(scorer, score_cache)
        clustered = clustering(part.features, part.indices, part.similarities, scores)
    finally:
        scorer.dismiss()
    return _result_of(part, "LCDE", clustered), clustered


def evaluate_unsupervised(part: Part, method: Unsupervised) -> tuple[Result, Clustering]:
    """Cluster ``part`` without any trained network."""
    clustered = method(part.features, part.indices, part.similarities)
    return _result_of(part, "unsupervised", clustered), clustered


def choose_thresholds(
    baselines: Mapping[str, ThresholdMethod], train_part: Part | None
) -> dict[str, tuple[ThresholdMethod, float]]:
    """Every baseline with its threshold.

    One whose threshold is None takes the one that is best on ``train_part``, and is left out without one.
    """
    chosen = {}
    for name, method in track(baselines.items(), "thresholds of untrained methods"):
        if method.threshold is not None:
            chosen[name] = method, method.threshold
        elif train_part is not None:
            graph = train_part.indices, train_part.similarities
            chosen[name] = method, choose_threshold(method, *graph, train_part.labels_true)
    return chosen


def evaluate_baselines(part: Part, baselines: Mapping[str, tuple[ThresholdMethod, float]]) -> list[Result]:
    """Every one of `choose_thresholds` on ``part``."""
    results = []
    for name, (method, threshold) in track(baselines.items(), "untrained methods"):
        start = time.perf_counter()
        labels = method(part.indices, part.similarities, threshold)
        seconds = {"knn": part.knn_seconds, "clustering": time.perf_counter() - start}
        results.append(_result(part.name, part.labels_true, name, labels, None, seconds))
    return results


def evaluate_assignment(
    saved: SavedClustering,
    features: np.ndarray,
    labels_true: np.ndarray | None,
    bind: Callable[[np.ndarray, np.ndarray], Networks] | None,
) -> tuple[Result, SavedClustering]:
    """Assign new faces to ``saved`` as its `assign` does; the result is of the new faces, the clustering of all."""
    seconds: dict[str, float] = {}
    with timed(seconds, "assignment"):
        union = saved.assign(features, bind)
    return _result("custom", labels_true, "assignment", union.labels[len(saved.labels) :], None, seconds), union


def _result_of(part: Part, method: str, clustered: Clustering) -> Result:
    seconds = {"knn": part.knn_seconds, **clustered.seconds}
    return _result(part.name, part.labels_true, method, clustered.labels, clustered.noise, seconds)


def _result(
    part: str,
    labels_true: np.ndarray | None,
    method: str,
    labels: np.ndarray,
    noise: np.ndarray | None,
    seconds: dict[str, float],
) -> Result:
    scores: tuple[Score | None, Score | None, float | None] = (None, None, None)
    if labels_true is not None:
        table = Contingency.of(labels_true, labels)
        scores = pairwise(table), bcubed(table), nmi(table)
    seconds["total"] = sum(seconds.values())
    return Result(part, method, labels, noise, *scores, seconds, _peak_memory_mb())


def _peak_memory_mb() -> float | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
