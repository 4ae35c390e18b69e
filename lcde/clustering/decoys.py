"""Decoys: copies of clusters, changed into impostors, tell how often a score takes impostors for one identity.

Whatever a score means, the share of wrong merges above a threshold follows from how many decoys reach it: a false
discovery rate, as by target and decoy competition in mass spectrometry or by knockoffs.

References
----------
Elias, Gygi: Target-decoy search strategy for increased confidence in large-scale protein identifications by mass
spectrometry. Nature Methods 4, 2007.
Barber, Candès: Controlling the false discovery rate via knockoffs. Annals of Statistics 43, 2015.
"""

import numpy as np

from lcde.clustering.impostors import fit_low_quantiles
from lcde.clustering.nodes import pool

SIGNS = np.array([-1, 1], dtype=np.float32)
COMPARED = 600  # clusters whose similarities tell the spread


def add_decoys(features: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A gallery in which each cluster is followed by a decoy.

    A decoy is its cluster with random signs of the coordinates along the principal directions of all clusters: the
    similarities within it stay, and those to other clusters become those of an impostor from the same covariance. Few
    people span few directions, in which decoys would be more alike than impostors are; as far as that is so, decoys are
    rotated into further dimensions.

    Parameters
    ----------
    features : (N, D) float32
        Unit length.
    labels : (N,) int64
        Clusters from 0, without gaps, three or more.
    rng : numpy.random.Generator

    Returns
    -------
    features : (2 N, 2 D) float32
    labels : (2 N,) int64
        The decoy of cluster c of C is C + c.
    """
    directions, num_clusters, dim = pool(features, labels).directions, labels.max() + 1, features.shape[1]
    mean = directions.mean(axis=0)
    mean /= max(float(np.linalg.norm(mean)), 1e-9)
    rest = directions - np.outer(directions @ mean, mean)
    axes = np.linalg.eigh(rest.T @ rest + 2 * num_clusters * np.outer(mean, mean))[1].astype(np.float32)
    coordinates = features @ axes
    signs = rng.choice(SIGNS, size=(num_clusters, dim))
    signs[:, -1] = 1  # the last axis is the mean of all clusters, which impostors share
    flipped = (signs[labels] * coordinates) @ axes.T

    some = np.random.default_rng(0).permutation(num_clusters)[:COMPARED]
    different = ~np.eye(len(some), dtype=bool)
    spread = fit_low_quantiles((directions[some] @ directions[some].T)[different])[1]
    to_decoys = (directions[some] @ pool(flipped, labels).directions[some].T)[different].std()
    inside = np.float32(min(1.0, spread / max(float(to_decoys), 1e-6)))
    outside = coordinates * rng.choice(SIGNS, size=(num_clusters, dim))[labels]
    decoys = np.concatenate([inside * flipped, np.sqrt(1 - inside**2) * outside], axis=1)
    padded = np.pad(features, ((0, 0), (0, dim)))
    return np.concatenate([padded, decoys]), np.concatenate([labels, num_clusters + labels])


def decoy_threshold(best: np.ndarray, of_decoys: np.ndarray, false_merges: float, least: float) -> float:
    """Lowest score of at least ``least`` above which the expected share of wrong merges is ``false_merges`` or less.

    Parameters
    ----------
    best : (T, C) float
        The best score that each cluster has with another one, in each of T draws of decoys.
    of_decoys : (T, C) float
        The best score that it has with a decoy.
    false_merges, least : float

    Returns
    -------
    float
        Infinity where there is none.
    """
    candidates = np.unique(np.append(best, least))
    candidates = candidates[candidates >= least]
    real = best.size - np.searchsorted(np.sort(best, axis=None), candidates)
    decoys = of_decoys.size - np.searchsorted(np.sort(of_decoys, axis=None), candidates)
    kept = candidates[decoys + 1 <= false_merges * real]
    return float(kept.min()) if len(kept) else float("inf")
