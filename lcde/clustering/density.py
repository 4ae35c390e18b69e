"""Connectivity to density: symmetrise, then sum."""

import numpy as np
from scipy.sparse import csr_matrix

from lcde.data.gallery import fill_in_threads, row_blocks


def symmetrise(connectivity: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Mean of the connectivity of i to j and of j to i, where a missing reverse edge counts 0.

    Time is linear in N: one counting sort, and for each edge one search among those that lead to its own face.

    Parameters
    ----------
    connectivity : (N, K) float32
    indices : (N, K) int32
        No repeats within a row.

    Returns
    -------
    (N, K) float32
    """
    num_faces, k = indices.shape
    row_starts = np.arange(0, indices.size + 1, k)
    graph = csr_matrix((connectivity.ravel(), indices.ravel(), row_starts), shape=(num_faces, num_faces))
    incoming = graph.tocsc()  # column i: the faces that have i as a neighbour, in ascending order
    result = np.empty((num_faces, k), dtype=np.float32)

    def fill(rows: slice) -> None:
        face = np.repeat(np.arange(rows.stop - rows.start, dtype=indices.dtype), k)
        # A slice of its own: each look-up first checks that all columns it is given are in order.
        reverse = incoming[:, rows][indices[rows].ravel(), face]
        np.add(connectivity[rows], reverse.A1.reshape(-1, k), out=result[rows])
        result[rows] /= 2

    fill_in_threads(fill, row_blocks(num_faces))
    return result


def density(connectivity: np.ndarray, similarities: np.ndarray) -> np.ndarray:
    """Density of each face: d_i = Σ_{j≥1} c_ij · s_ij, the face itself left out (paper, section 3.2).

    Parameters
    ----------
    connectivity : (N, K) float32
        Symmetrised.
    similarities : (N, K) float32

    Returns
    -------
    (N,) float64
    """
    result = np.empty(len(connectivity), dtype=np.float64)
    for rows in row_blocks(len(result)):
        result[rows] = (connectivity[rows, 1:].astype(np.float64) * similarities[rows, 1:]).sum(axis=1)
    return result
