"""Clustering of any embeddings by a network that judges clusters by their similarities alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from scipy.special import expit, logit

from lcde.data.gallery import Gallery
from lcde.errors import InputError
from lcde.methods.method import Clustering, Scores, timed
from lcde.methods.settings import Within
from lcde.methods.unsupervised import UnsupervisedRule


@dataclass
class UniversalRule(UnsupervisedRule):
    """Small pure clusters by `UnsupervisedRule`, merged while the model takes two for one identity.

    In each round, clusters merge that are each other's most probable partner above the threshold; the model then judges
    the larger clusters anew. Where no two are left, the next threshold follows.

    Attributes
    ----------
    thresholds : sequence of float
        Of the probability, in the order of their use.
    merge_more : float
        Added to the log-odds of the model: above 0, clusters become fewer and less pure.
    """

    thresholds: Sequence[float] = (0.9,)
    merge_more: Annotated[float, Within(-20, 20)] = 0.0

    needs_scores = True  # new faces are assigned as by `UnsupervisedRule`, without the model

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise InputError(f"clustering.thresholds={list(self.thresholds)} must be numbers from 0 to 1.")

    def __call__(self, gallery: Gallery, scores: Scores | None = None) -> Clustering:
        """Cluster ``gallery``; the details are those of `UnsupervisedRule`."""
        assert scores is not None
        start = super().__call__(gallery, None)
        seconds, labels = dict(start.seconds), start.labels
        with timed(seconds, "merges"):
            features = self.transformed(gallery, labels)
            for threshold in self.thresholds:
                labels = self._merge(features, labels, scores, threshold)
        return replace(start, labels=labels, seconds=seconds)

    def _merge(self, features: np.ndarray, labels: np.ndarray, scores: Scores, threshold: float) -> np.ndarray:
        """``labels`` (N,) with clusters merged until no probability is above ``threshold``."""
        least = expit(logit(threshold) - self.merge_more)
        while labels.max() > 0:
            merged = merge_pairs(*scores.merge_probability(features, labels), least)
            if merged.max() + 1 == len(merged):
                break
            labels = merged[labels]
        return labels


def merge_pairs(indices: np.ndarray, probability: np.ndarray, threshold: float) -> np.ndarray:
    """Numbers (C,) from 0 of the clusters that are left when mutual best partners above ``threshold`` merge.

    Parameters
    ----------
    indices : (C, K) integers
        Candidates of each cluster, itself first.
    probability : (C, K) float32
    threshold : float
    """
    clusters = np.arange(len(indices))
    best = 1 + probability[:, 1:].argmax(axis=1)
    partner = indices[clusters, best]
    merges = (probability[clusters, best] > threshold) & (partner[partner] == clusters)
    return np.unique(np.where(merges, np.minimum(clusters, partner), clusters), return_inverse=True)[1]
