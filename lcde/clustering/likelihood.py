"""Likelihood that the faces of two clusters are of one identity, by the two-covariance model of PLDA."""

from dataclasses import dataclass

import numpy as np

from lcde.clustering.transformed import Features
from lcde.clustering.whitening import centroids_of, within_cluster_covariance
from lcde.data.gallery import row_blocks

NOISE = 1.5  # times the covariance within clusters, which hold similar faces only
WITHIN_SHARE = 0.3  # of the unit matrix in the covariance within clusters
BETWEEN_SHARE = 0.9  # of the unit matrix in that between them, of which clusters tell less than of the former
FLAT = 1e-5  # of the largest variance: directions of less are left out, as no faces differ along them


@dataclass(frozen=True)
class TwoCovariance:
    """A model in which the faces of an identity are normally distributed around its mean, and so are these means.

    Attributes
    ----------
    mean : (D,) float32
        Of the identities.
    matrix : (D, R) float32
        By which centred features are multiplied: the covariance of the faces of an identity is then the unit matrix,
        that of the identities diagonal. R is D less the directions along which no faces differ.
    variances : (R,) float64
        Of the identities.

    References
    ----------
    Ioffe: Probabilistic linear discriminant analysis. ECCV 2006.
    Brümmer, de Villiers: The speaker partitioning problem. Odyssey 2010.
    """

    mean: np.ndarray
    matrix: np.ndarray
    variances: np.ndarray

    @classmethod
    def of(cls, features: Features, labels: np.ndarray) -> "TwoCovariance | None":
        """Estimate the model from clusters, each of faces of one identity, but perhaps not of all of them.

        Parameters
        ----------
        features : (N, D) float32
        labels : (N,) int64
            Clusters from 0, -1 for noise, which does not count.

        Returns
        -------
        TwoCovariance or None
            None without clusters of two or more different faces, or where the centroids of the clusters vary no more
            than their faces explain.
        """
        sizes, centroids = centroids_of(features, labels)
        within = within_cluster_covariance(features, labels, sizes, centroids)
        if within is None:
            return None
        sizes, centroids = sizes[sizes > 0], centroids[sizes > 0]
        mean = centroids.mean(axis=0)
        centroids -= mean
        between = centroids.T @ centroids / max(1, len(centroids) - 1)
        spread, axes = np.linalg.eigh((within + between).astype(np.float64))
        basis = axes[:, spread > FLAT * spread[-1]]
        within, between = (basis.T @ covariance @ basis for covariance in (within, between))
        unit = np.eye(len(within))
        within = NOISE * ((1 - WITHIN_SHARE) * within + WITHIN_SHARE * np.trace(within) / len(within) * unit)
        values, vectors = np.linalg.eigh(within)
        whitening = vectors / np.sqrt(values)
        between = whitening.T @ between @ whitening - np.mean(1 / sizes) * unit  # of centroids around their identities
        typical = np.trace(between) / len(between)
        if not typical > 0:
            return None
        variances, axes = np.linalg.eigh(between)
        variances = (1 - BETWEEN_SHARE) * np.maximum(variances, 0) + BETWEEN_SHARE * typical
        return cls(mean, (basis @ whitening @ axes).astype(np.float32), variances)

    def moved(self, sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Sums (C, R) of the transformed faces of clusters, from ``sums`` (C, D) of faces and ``sizes`` (C,)."""
        return (sums - sizes[:, None].astype(np.float32) * self.mean) @ self.matrix

    def evidence(self, sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Log-likelihood (C,) of each cluster's faces if they are of one identity, by sums as of `moved`.

        What depends on the faces but not on how they are clustered is left out. The evidence of two clusters together,
        minus that of each, is the log-likelihood ratio of one identity and two.
        """
        evidence = np.empty(len(sums))
        for rows in row_blocks(len(sums)):
            many = sizes[rows, None] * self.variances
            squares = sums[rows].astype(np.float64) ** 2 * (self.variances / (1 + many))
            evidence[rows] = (squares - np.log1p(many)).sum(axis=1) / 2
        return evidence
