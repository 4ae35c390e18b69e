"""Edges to labels, and noise."""

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def connected_labels(edges: np.ndarray, num_faces: int) -> np.ndarray:
    """Connected components of undirected ``edges`` (M, 2) over N faces: labels (N,) int64, numbered by first face."""
    ones = np.ones(len(edges), dtype=bool)
    graph = coo_matrix((ones, (edges[:, 0], edges[:, 1])), shape=(num_faces, num_faces))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def label_noise(labels: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """``labels`` (N,) with -1 for the ``noise`` (N,) bool, as HDBSCAN has it, and the others renumbered from 0."""
    result = np.full(len(labels), -1, dtype=np.int64)
    result[~noise] = np.unique(labels[~noise], return_inverse=True)[1]
    return result
