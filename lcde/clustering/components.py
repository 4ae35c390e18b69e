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


def separate_noise(labels: np.ndarray) -> np.ndarray:
    """``labels`` (N,) with each face of label -1 a cluster of its own: (N,) int64, numbered from 0."""
    noise = labels < 0
    apart = np.where(noise, labels.max(initial=-1) + np.cumsum(noise), labels)
    return np.unique(apart, return_inverse=True)[1].astype(np.int64)
