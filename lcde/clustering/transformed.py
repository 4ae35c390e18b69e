"""Features that are transformed whenever they are read."""

from dataclasses import dataclass

import numpy as np

from lcde.data.gallery import fill_in_threads, row_blocks
from lcde.data.search import GATHERED_ROWS

TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Transformed:
    """Features (N, D) that are transformed whenever rows are read: at millions of faces, a copy takes gigabytes.

    A row is that of ``given`` less ``offset``, times ``matrix``, scaled to unit length; a face at the offset becomes 0.

    Attributes
    ----------
    given : (N, D) float32
    offset, matrix : (D,), (D, D) float32
    """

    given: np.ndarray
    offset: np.ndarray
    matrix: np.ndarray

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        moved = (self.given[rows] - self.offset) @ self.matrix
        return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), TINY)

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""
        return self.given.shape

    def similarities(self, indices: np.ndarray) -> np.ndarray:
        """Cosine similarities (N, K) float32 of transformed faces to their neighbours ``indices`` (N, K)."""
        scale, found = np.empty(len(indices), dtype=np.float32), np.empty(indices.shape, dtype=np.float32)
        for rows in row_blocks(len(indices)):
            length = np.linalg.norm((self.given[rows] - self.offset) @ self.matrix, axis=1)
            scale[rows] = (length > 0) / np.maximum(length, TINY)

        def fill(rows: slice) -> None:
            """The transformation is applied to the face alone, backwards, not to each of its neighbours."""
            backwards = self[rows] @ self.matrix.T
            products = np.einsum("nkd,nd->nk", self.given[indices[rows]], backwards)
            found[rows] = (products - backwards @ self.offset[:, None]) * scale[indices[rows]]

        fill_in_threads(fill, row_blocks(len(indices), size=GATHERED_ROWS))
        return found


Features = np.ndarray | Transformed


def num_dimensions(features: Features) -> int:
    """Columns of ``features`` (N, D) that are not zero in all rows, at least 1: padding with zeros tells nothing."""
    zero = np.ones(features.shape[1], dtype=bool)
    for rows in row_blocks(features.shape[0]):
        zero &= ~features[rows].any(axis=0)
        if not zero.any():
            break
    return max(1, int(np.count_nonzero(~zero)))
