"""How similar impostor pairs are, estimated from the features and clusters of one gallery."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import betaincinv, ndtri

from lcde.clustering.transformed import Features, num_dimensions

SAMPLE = 2_000  # faces compared with as many others
QUANTILES = 0.05, 0.25  # of the similarity of impostor pairs, below nearly all genuine pairs: they give mean and spread
UPPER_QUANTILES = 0.75, 0.9  # of pairs of different clusters: look-alikes make this side wider
CONSISTENT = 0.85  # of the assumed share of impostor pairs; skewness leaves fewer than half of them below the mean
MOST = 0.75  # of the assumed impostor pairs that may lie below their mean
SMALLER = 0.7  # times the share where more do, again until at most `HALF` do
HALF = 0.5
ROUNDS = 20  # of the estimate of that share
NEAREST = 3  # neighbours whose mean similarity is the limit
HIGHEST = 0.999  # no threshold exceeds it: faces more similar than this are copies of one photograph
SMALLEST = 1e-3  # least spread by the upper quantiles
FEWEST = 12  # clusters whose pairs tell how similar impostors are
DENSE_SHARE = 0.25  # share of faces whose nearest neighbour lies between both tails, from which the normal tail fails


@dataclass(frozen=True)
class Impostors:
    """Distribution of the similarity of two faces of different identities, taken as normal.

    Attributes
    ----------
    mean, spread : float
        Mean and standard deviation, from low quantiles.
    upper_mean, upper_spread : float
        Of the normal distribution that has the upper quantiles of pairs of different clusters.
    num_faces : int
        N
    nearest : (n, 3) float32
        Similarities of some faces to their nearest neighbours, or to all others where they are fewer.
    """

    mean: float
    spread: float
    upper_mean: float
    upper_spread: float
    num_faces: int
    nearest: np.ndarray

    @classmethod
    def of(cls, features: Features, labels: np.ndarray, similarities: np.ndarray) -> "Impostors":
        """Estimate the distribution from random pairs of different clusters, without copies.

        Parameters
        ----------
        features : (N, D) float32
            Unit length. A spread below 1/√D, that of random directions, is raised to it; columns of zeros do not count.
        labels : (N,) int64
            Clusters so far; every face may be alone. If there is one cluster only, pairs within it are taken.
        similarities : (N, K) float32
            Of the faces to their neighbours, the face itself in column 0.
        """
        num_faces, dim = features.shape[0], num_dimensions(features)
        faces = np.random.default_rng(0).permutation(num_faces)
        first, second = faces[:SAMPLE], faces[-SAMPLE:]
        pairs, different = features[first] @ features[second].T, labels[first][:, None] != labels[second]
        pairs = pairs[(pairs < HIGHEST) & (different if different.any() else True)]
        pairs.sort()
        mean, spread = fit_low_quantiles(pairs) if len(pairs) else (0.0, 0.0)
        nearest = -np.sort(-similarities[first], axis=1)[:, 1 : 1 + NEAREST]
        upper_mean, upper_spread = normal_through(pairs, UPPER_QUANTILES) if len(pairs) else (0.0, 0.0)
        spread, upper_spread = max(spread, dim**-0.5), max(upper_spread, SMALLEST)
        return cls(mean, spread, upper_mean, upper_spread, num_faces, nearest)

    def with_look_alikes(self, per_face: float) -> float:
        """As `similarity`, by the upper quantiles where these say more: for clusters that are nearly complete.

        Where clusters are fragments, the upper quantiles are of genuine pairs, too.
        """
        upper = replace(self, mean=self.upper_mean, spread=self.upper_spread)
        return max(self.similarity(per_face), upper.similarity(per_face))

    def between_clusters(self, num_clusters: int, wrong: float) -> float:
        """Mean similarity that ``wrong`` of all pairs of clusters, of different identities each, are expected to reach.

        Infinity for fewer than `FEWEST` clusters, whose pairs do not tell how similar impostors are.
        """
        if num_clusters < FEWEST or not wrong:
            return np.inf
        return self.of_pairs(num_clusters * (num_clusters - 1) / 2, wrong)

    def of_pairs(self, num_pairs: float, wrong: float) -> float:
        """Similarity that ``wrong`` of ``num_pairs`` pairs, of different identities each, are expected to reach."""
        return self.similarity(wrong * self.num_faces / num_pairs)

    def similarity(self, per_face: float) -> float:
        """Similarity that ``per_face`` of a face's N impostors are expected to reach.

        In few dimensions the normal tail reaches beyond genuine pairs. Directions that are spread evenly over a sphere
        have a shorter tail, that of a beta distribution: where many nearest neighbours lie between both tails, the mean
        similarity to the nearest neighbours is an upper limit, as the paper's τ.
        """
        tail = min(0.5, per_face / self.num_faces)
        normal, range_ = self.mean - self.spread * float(ndtri(tail)), 1 - self.mean
        if not self.nearest.size:
            return min(HIGHEST, normal)
        shape = max(0.5, ((range_ / self.spread) ** 2 - 1) / 2)  # (d - 1) / 2 in d dimensions, whose spread is d^-1/2
        even = self.mean + range_ * (1 - 2 * betaincinv(shape, shape, tail))
        between = (self.nearest[:, 0] >= even) & (self.nearest[:, 0] < normal)
        limit = float(self.nearest.mean()) if normal >= HIGHEST or between.mean() > DENSE_SHARE else HIGHEST
        return min(HIGHEST, limit, normal)


def fit_low_quantiles(pairs: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the impostors among the similarities ``pairs`` (M,).

    Two low quantiles determine both if all pairs are of impostors. If far fewer than half of the pairs lie below the
    mean so found, only about twice as many are of impostors: the quantiles are taken of this share of the pairs, again
    until the share is consistent. If far more than half do, the upper quantile is of genuine pairs, and the share is
    smaller than assumed.
    """
    pairs, share, most = np.sort(pairs), 1.0, MOST
    for _ in range(ROUNDS):
        mean, spread = normal_through(pairs, QUANTILES, share)
        below = np.searchsorted(pairs, np.float32(mean)) / len(pairs)  # of a float64 it would make a copy of all pairs
        if below > most * share:
            share, most = share * SMALLER, HALF
        else:
            share = min(share, 2 * below / CONSISTENT)
    return mean, spread


def normal_through(pairs: np.ndarray, quantiles: tuple[float, float], share: float = 1.0) -> tuple[float, float]:
    """Mean and spread of the normal distribution that has two ``quantiles`` of the lowest ``share`` of sorted pairs."""
    low, high = ndtri(quantiles)
    lower, upper = pairs[np.multiply(quantiles, share * (len(pairs) - 1)).astype(np.int64)].astype(np.float64)
    spread = (upper - lower) / (high - low)
    return float(upper - high * spread), float(spread)
