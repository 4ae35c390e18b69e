"""DBSCAN on the kNN graph."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from scipy.sparse import csr_matrix

from lcde.clustering.components import separate_noise
from lcde.data.gallery import Gallery
from lcde.methods.classical import ThresholdRule
from lcde.settings import Within


@dataclass
class DBSCANRule(ThresholdRule):
    """DBSCAN by scikit-learn: faces with enough similar neighbours, and the faces similar to these.

    Attributes
    ----------
    min_samples : int
        Faces of at least the threshold's similarity, the face itself counted, that make it a core of a cluster.

    References
    ----------
    Ester, Kriegel, Sander, Xu: A density-based algorithm for discovering clusters. KDD 1996.
    """

    min_samples: Annotated[int, Within(1)] = 2

    def _labels(self, gallery: Gallery, edges: np.ndarray, weights: np.ndarray) -> np.ndarray:
        from sklearn.cluster import DBSCAN

        # Whether a face is near is all that counts: distances are 1 between near faces, and others are not stored.
        ends = np.concatenate([edges, edges[:, ::-1]])
        near = csr_matrix((np.ones(len(ends)), ends.T), shape=(len(gallery),) * 2)
        near.data[:] = 1  # edges in the rows of both ends were added
        return separate_noise(DBSCAN(eps=1, min_samples=self.min_samples, metric="precomputed").fit_predict(near))
