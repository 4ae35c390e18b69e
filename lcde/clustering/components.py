"""Edges to labels."""

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def connected_labels(edges: np.ndarray, num_faces: int) -> np.ndarray:
    """Connected components of undirected ``edges`` (M, 2) over N faces: labels (N,) int64, numbered by first face."""
    ones = np.ones(len(edges), dtype=bool)
    graph = coo_matrix((ones, (edges[:, 0], edges[:, 1])), shape=(num_faces, num_faces))
    return connected_components(graph, directed=False)[1].astype(np.int64)
