"""One gallery of faces: features, identities and their kNN graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Part:
    """What a data set calls a part: the faces that are clustered together.

    name:          "part1_test", …
    features:      (N, D) float32, unit L2 norm
    indices:       (N, K) int32, column 0 is the face itself
    similarities:  (N, K) float32 cosine similarities, descending
    labels_true:   (N,) int64 identities from 0, or None where they are unknown
    knn_seconds:   time it took to build the graph, 0 where it was read from a file
    images:        image file of each face, N of them, or None
    """

    name: str
    features: np.ndarray
    indices: np.ndarray
    similarities: np.ndarray
    labels_true: np.ndarray | None
    knn_seconds: float = 0.0
    images: Sequence[Path] | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def k(self) -> int:
        return self.indices.shape[1]
