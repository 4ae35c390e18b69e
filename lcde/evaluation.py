"""Cluster a part by one method and score it: what the callback, train.py and eval.py all call."""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.progress import track
from torch import nn

from lcde.clustering.classical import ThresholdMethod, choose_threshold
from lcde.clustering.pipeline import Clustering, LCDEClustering
from lcde.data.part import Part
from lcde.metrics import Contingency, Score, bcubed, nmi, pairwise
from lcde.models.scoring import GraphScorer


@dataclass(frozen=True)
class Result:
    """One method on one part; the scores are None where identities are unknown.

    labels:          (N,) int64 from 0
    seconds:         time of each stage and "total"
    peak_memory_mb:  largest memory of the process so far
    """

    part: str
    method: str
    labels: np.ndarray
    pairwise: Score | None
    bcubed: Score | None
    nmi: float | None
    seconds: dict[str, float]
    peak_memory_mb: float

    @property
    def num_clusters(self) -> int:
        return int(self.labels.max()) + 1


def evaluate_lcde(
    part: Part, lcenet: nn.Module, pcenet: nn.Module, clustering: LCDEClustering, show_progress: bool
) -> tuple[Result, Clustering]:
    """Cluster ``part`` with the networks, on the device they are on."""
    clustered = clustering(
        part.indices,
        part.similarities,
        GraphScorer(lcenet, pcenet, part.features, part.indices, show_progress),
    )
    return _result(part, "LCDE", clustered.labels, {"knn": part.knn_seconds, **clustered.seconds}), clustered


def evaluate_classical(part: Part, name: str, method: ThresholdMethod, threshold: float) -> Result:
    """Cluster ``part`` by a method that needs no training."""
    start = time.perf_counter()
    labels = method(part.indices, part.similarities, threshold)
    return _result(part, name, labels, {"knn": part.knn_seconds, "clustering": time.perf_counter() - start})


def evaluate_parts(
    parts: Sequence[Part],
    lcenet: nn.Module,
    pcenet: nn.Module,
    clustering: LCDEClustering,
    baselines: Mapping[str, ThresholdMethod],
    train_part: Part | None,
) -> tuple[list[Result], list[tuple[Part, Clustering]]]:
    """LCDE and every baseline on every part.

    A baseline whose threshold is None takes the one that is best on ``train_part``, and is left out without one.
    """
    thresholds = {}
    for name, method in track(baselines.items(), "thresholds of the untrained methods", transient=True):
        if method.threshold is not None:
            thresholds[name] = method.threshold
        elif train_part is not None:
            thresholds[name] = choose_threshold(
                method, train_part.indices, train_part.similarities, train_part.labels_true
            )
    results, clusterings = [], []
    for part in parts:
        result, clustered = evaluate_lcde(part, lcenet, pcenet, clustering, show_progress=True)
        results.append(result)
        clusterings.append((part, clustered))
        results += [evaluate_classical(part, name, baselines[name], thresholds[name]) for name in thresholds]
    return results, clusterings


def _result(part: Part, method: str, labels: np.ndarray, seconds: dict[str, float]) -> Result:
    scores: tuple[Score | None, Score | None, float | None] = (None, None, None)
    if part.labels_true is not None:
        table = Contingency.of(part.labels_true, labels)
        scores = pairwise(table), bcubed(table), nmi(table)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, in KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return Result(part.name, method, labels, *scores, {**seconds, "total": sum(seconds.values())}, peak)
