"""Edges to labels."""

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def connected_labels(edges: np.ndarray, num_faces: int) -> np.ndarray:
    """Connected components of undirected ``edges`` (M, 2) over N faces: labels (N,) int64, numbered by first face."""
    ones = np.ones(len(edges), dtype=bool)
    graph = coo_matrix((ones, (edges[:, 0], edges[:, 1])), shape=(num_faces, num_faces))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def noise_faces(
    labels: np.ndarray, density: np.ndarray, min_cluster_size: int, density_threshold: float | None
) -> np.ndarray:
    """Faces (N,) bool in clusters smaller than ``min_cluster_size`` or of a density below ``density_threshold``."""
    noise = np.bincount(labels)[labels] < min_cluster_size
    return noise if density_threshold is None else noise | (density < density_threshold)


def label_noise(labels: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """``labels`` (N,) with -1 for the ``noise`` (N,) bool and the others numbered anew from 0, as HDBSCAN has them."""
    result = np.full(len(labels), -1, dtype=np.int64)
    result[~noise] = np.unique(labels[~noise], return_inverse=True)[1]
    return result
