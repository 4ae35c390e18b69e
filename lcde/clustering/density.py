"""Connectivity to density: symmetrise, then sum."""

import numpy as np

ROWS = 65_536  # rows handled at a time: float64 intermediates of a whole graph would not fit at millions of faces


def symmetrise(connectivity: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Mean of the connectivity of i to j and of j to i, where a missing reverse edge counts 0.

    connectivity: (N, K) float32; indices: (N, K) int32, no repeats within a row. Returns (N, K) float32.
    """
    num_faces, k = indices.shape
    source = np.repeat(np.arange(num_faces, dtype=np.int64), k)
    target = indices.ravel().astype(np.int64)
    # Both directions of an edge share one key, so after sorting they stand side by side.
    key = np.minimum(source, target) * num_faces + np.maximum(source, target)
    order = np.argsort(key)
    key = key[order]
    twin = np.flatnonzero(key[1:] == key[:-1])
    first, second = order[twin], order[twin + 1]
    flat = connectivity.ravel()
    total = np.where(source == target, 2 * flat, flat)  # an edge to the face itself is its own reverse
    total[first] = total[second] = flat[first] + flat[second]
    return (total / 2).reshape(num_faces, k)


def density(connectivity: np.ndarray, similarities: np.ndarray) -> np.ndarray:
    """Density of each face: d_i = Σ_{j≥1} c_ij · s_ij, the face itself left out (paper, section 3.2).

    connectivity, similarities: (N, K) float32, the connectivity symmetrised. Returns (N,) float64.
    """
    result = np.empty(len(connectivity), dtype=np.float64)
    for start in range(0, len(result), ROWS):
        rows = slice(start, start + ROWS)
        result[rows] = (connectivity[rows, 1:].astype(np.float64) * similarities[rows, 1:]).sum(axis=1)
    return result
