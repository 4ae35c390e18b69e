"""Sums over the neighbours that both ends of an edge share."""

import numpy as np
from scipy.sparse import csr_matrix

from lcde.data.gallery import fill_in_threads, row_blocks
from lcde.progress import counter

ROWS = 1_024  # whose shared neighbours each thread computes at a time


def sums_over_shared(left: np.ndarray, right: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Sum of left_im · right_jm over the neighbours m that faces i and j share, for each edge (i, j): (N, K) float32.

    Parameters
    ----------
    left, right : (N, K) float32
        Of the edges; 0 counts as no edge.
    indices : (N, K) int32
        Neighbours of each face.
    """
    num_faces, k = indices.shape
    places, shape = (indices.ravel(), np.arange(0, indices.size + 1, k)), (num_faces, num_faces)
    of_face, of_neighbour = (csr_matrix((values.ravel(), *places), shape=shape) for values in (left, right))
    return products_at(of_face, of_neighbour.T.tocsr(), indices)


def products_at(left: csr_matrix, right: csr_matrix, indices: np.ndarray) -> np.ndarray:
    """Entry (i, j) of ``left @ right``, both (N, N), for each edge (i, j) of ``indices`` (N, K): (N, K) float32."""
    values = np.empty(indices.shape, dtype=np.float32)
    with counter("shared neighbours", len(indices), shown=len(indices) > 40 * ROWS) as advance:

        def fill(rows: slice) -> None:
            product = left[rows] @ right
            faces = np.arange(product.shape[0]).repeat(indices.shape[1])
            values[rows] = np.asarray(product[faces, indices[rows].ravel()]).reshape(-1, indices.shape[1])
            advance(len(values[rows]))

        fill_in_threads(fill, row_blocks(len(indices), size=ROWS))
    return values
