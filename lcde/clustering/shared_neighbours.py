"""Sums over the neighbours that both ends of an edge share."""

import numpy as np
from scipy.sparse import csr_matrix

from lcde.data.gallery import row_blocks
from lcde.progress import track

ROWS = 4_096  # whose shared neighbours are computed at a time


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
    to_neighbour = of_neighbour.T.tocsr()
    sums = np.empty((num_faces, k), dtype=np.float32)
    for rows in track(list(row_blocks(num_faces, size=ROWS)), "shared neighbours", num_faces > 10 * ROWS):
        product = of_face[rows] @ to_neighbour
        faces = np.repeat(np.arange(product.shape[0]), k)
        sums[rows] = np.asarray(product[faces, indices[rows].ravel()]).reshape(-1, k)
    return sums
