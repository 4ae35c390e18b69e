"""Connectivity to density: symmetrise, then sum."""

import numpy as np

from lcde.data.gallery import fill_in_threads, row_blocks

COMPARED_ROWS = 64  # whose neighbours' rows are compared at a time: they stay in the cache


def symmetrise(connectivity: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Mean of the connectivity of i to j and of j to i, where a missing reverse edge counts 0.

    Each face is looked for in the rows of its neighbours, N·K² comparisons in threads: a reversed graph would take
    twice the memory of the result.

    Parameters
    ----------
    connectivity : (N, K) float32
    indices : (N, K) int32
        No repeats within a row.

    Returns
    -------
    (N, K) float32
    """
    result = np.empty(connectivity.shape, dtype=np.float32)

    def fill(rows: slice) -> None:
        neighbours, face = indices[rows], np.arange(rows.start, rows.stop, dtype=indices.dtype)
        is_face = indices[neighbours] == face[:, None, None]  # (B, K, K)
        column = is_face.argmax(axis=2)
        mutual = np.take_along_axis(is_face, column[..., None], axis=2)[..., 0]
        np.add(connectivity[rows], np.where(mutual, connectivity[neighbours, column], 0), out=result[rows])
        result[rows] /= 2

    fill_in_threads(fill, row_blocks(len(indices), size=COMPARED_ROWS))
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
