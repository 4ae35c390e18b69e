"""Pairwise and BCubed precision, recall and F-score, and NMI, from one sparse contingency table."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class Score:
    """Precision, recall and their harmonic mean, as fractions."""

    precision: float
    recall: float

    @property
    def f_score(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    def as_dict(self) -> dict[str, float]:
        return {"precision": self.precision, "recall": self.recall, "f_score": self.f_score}


@dataclass(frozen=True)
class Contingency:
    """How N faces spread over identities and clusters; empty cells are left out.

    counts:           (cells,) int64, faces of one identity in one cluster
    identity_sizes:   (cells,) int64, size of the cell's identity; cluster_sizes likewise
    identities:       (I,) int64 sizes of all identities; clusters (C,) likewise
    """

    counts: np.ndarray
    identity_sizes: np.ndarray
    cluster_sizes: np.ndarray
    identities: np.ndarray
    clusters: np.ndarray

    @classmethod
    def of(cls, labels_true: np.ndarray, labels: np.ndarray) -> "Contingency":
        """Count two labelings (N,) of integers; raise ValueError where they differ in shape or are empty."""
        if labels_true.ndim != 1 or labels_true.shape != labels.shape or not len(labels):
            shapes = labels_true.shape, labels.shape
            raise ValueError(f"labels_true and labels of shapes {shapes} must be equally long vectors, not empty ones.")
        identity, cluster = _numbered(labels_true), _numbered(labels)
        table = csr_matrix((np.ones(len(labels), dtype=np.int64), (identity, cluster)))  # adds up equal pairs
        identities, clusters = table.sum(axis=1).A1, table.sum(axis=0).A1
        sizes = np.repeat(identities, np.diff(table.indptr)), clusters[table.indices]
        return cls(table.data, *sizes, identities[identities > 0], clusters[clusters > 0])


def pairwise(table: Contingency) -> Score:
    """Pairwise precision and recall over all pairs of distinct faces; a ratio without any pair counts 1."""
    together = _pairs(table.counts)
    predicted, true = _pairs(table.clusters), _pairs(table.identities)
    return Score(together / predicted if predicted else 1.0, together / true if true else 1.0)


def bcubed(table: Contingency) -> Score:
    """BCubed precision and recall (Amigó et al. 2009): means over faces, each face compared with itself too."""
    squared, n = table.counts.astype(np.float64) ** 2, table.clusters.sum()
    return Score(float((squared / table.cluster_sizes).sum() / n), float((squared / table.identity_sizes).sum() / n))


def nmi(table: Contingency) -> float:
    """Normalised mutual information, arithmetic mean of the entropies; 1 where both labelings are one cluster."""
    n = table.clusters.sum()
    joint = table.counts / n
    mutual = float((joint * np.log(n * table.counts / (table.identity_sizes * table.cluster_sizes))).sum())
    mean_entropy = (_entropy(table.identities / n) + _entropy(table.clusters / n)) / 2
    return max(mutual, 0.0) / mean_entropy if mean_entropy else 1.0


def _pairs(sizes: np.ndarray) -> int:
    return int((sizes * (sizes - 1)).sum()) // 2


def _entropy(shares: np.ndarray) -> float:
    return float(-(shares * np.log(shares)).sum())


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Labels (N,) as integers from 0 to 4 N: as they are where they fit, as to number them anew takes a slow sort."""
    dtype = np.int32 if 4 * len(labels) < 2**31 else np.int64
    if labels.min() < 0 or labels.max() >= 4 * len(labels):
        labels = np.unique(labels, return_inverse=True)[1]
    return labels.astype(dtype)
