"""Clustering of any embeddings by a network that judges clusters by their similarities alone."""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from scipy.special import expit, logit

from lcde.clustering.decoys import add_decoys, decoy_threshold
from lcde.data.gallery import Gallery
from lcde.methods.method import Clustering, Scores, timed
from lcde.methods.unsupervised import UnsupervisedRule
from lcde.settings import Within

DRAWS = 3  # of the decoys
LEAST = 0.1  # probability of a merge, whatever decoys say


@dataclass
class UniversalRule(UnsupervisedRule):
    """Clusters of `UnsupervisedRule`, merged where the model's probability is above that of impostors.

    In each round, clusters merge that are each other's most probable partner above a threshold; the model then judges
    the larger clusters anew. The threshold is the probability that decoys, which are impostors, hardly ever have with a
    cluster of this gallery: so the model need not be calibrated for this embedder.

    Attributes
    ----------
    false_merges : float
        Expected share of merges that are wrong.
    merge_more : float
        Added to the log-odds of the model: above 0, clusters become fewer and less pure.
    """

    false_merges: Annotated[float, Within(0)] = 0.02
    merge_more: Annotated[float, Within(-20, 20)] = 0.0

    needs_scores = True  # new faces are assigned as by `UnsupervisedRule`, without the model

    def __call__(self, gallery: Gallery, scores: Scores | None = None) -> Clustering:
        """Cluster ``gallery``; the details are those of `UnsupervisedRule`."""
        assert scores is not None
        start = super().__call__(gallery, None)
        seconds, labels = dict(start.seconds), start.labels
        with timed(seconds, "merges"):
            labels = self._merge(self.transformed(gallery, labels), labels, scores)
        return replace(start, labels=labels, seconds=seconds)

    def _merge(self, features: np.ndarray, labels: np.ndarray, scores: Scores) -> np.ndarray:
        """``labels`` (N,) with clusters merged until decoys are as probable as the pairs that are left."""
        threshold, rounds = LEAST, 0
        while labels.max() > 1:  # two clusters do not tell how similar impostors are
            indices, probability, of_decoys = self._judged(features, labels, scores, rounds)
            best = probability.max(axis=2)
            threshold = max(threshold, decoy_threshold(best, of_decoys, self.false_merges, LEAST))
            if np.isinf(threshold):
                break
            merged = merge_pairs(indices, probability[0], expit(logit(threshold) - self.merge_more))
            if merged.max() + 1 == len(merged):
                break
            labels, rounds = merged[labels], rounds + 1
        return labels

    def _judged(
        self, features: np.ndarray, labels: np.ndarray, scores: Scores, rounds: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Candidates (C, K), their probability (DRAWS, C, K) where they are no decoys, and that of the best decoy."""
        num_clusters, judged = labels.max() + 1, []
        for draw in range(DRAWS):
            rng = np.random.default_rng([self.seed, rounds, draw])
            judged.append(scores.merge_probability(*add_decoys(features, labels, rng)))
        found, probability = (np.stack(arrays)[:, :num_clusters] for arrays in zip(*judged, strict=True))
        decoys, itself = found >= num_clusters, found == np.arange(num_clusters)[:, None]
        of_decoys = np.where(decoys, probability, 0).max(axis=2)
        return found[0], np.where(decoys | itself, 0, probability), of_decoys


def merge_pairs(indices: np.ndarray, probability: np.ndarray, threshold: float) -> np.ndarray:
    """Numbers (C,) from 0 of the clusters that are left when mutual best partners of ``threshold`` or more merge.

    Parameters
    ----------
    indices : (C, K) integers
        Candidates of each cluster; numbers from C on are not candidates.
    probability : (C, K) float32
        0 where there is no candidate, and for the cluster itself.
    threshold : float
        Above 0.
    """
    clusters = np.arange(len(indices))
    best = probability.argmax(axis=1)
    partner = np.where(probability[clusters, best] >= threshold, indices[clusters, best], clusters)
    merged = np.where(partner[partner] == clusters, np.minimum(clusters, partner), clusters)
    return np.unique(merged, return_inverse=True)[1]
