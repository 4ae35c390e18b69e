"""How similar strangers are, from the faces alone."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, norm

from lcde.clustering.edges import official_similarity_threshold

SAMPLE = 5_000  # faces compared with as many others: the quartiles of their similarity stand to the third decimal
NEAREST = 4  # columns of the graph that the official threshold is of
RARE = 0.01  # strangers a face: what so few reach tells where the tail of strangers ends
SAME = 0.999  # no threshold exceeds it: faces so much alike are one photograph
CROWDED = 0.25  # share of faces that the two tails must disagree about


@dataclass(frozen=True)
class Strangers:
    """The similarity of two strangers is about normal: its mean and spread (standard deviation) among N faces.

    limit:  similarity that no threshold exceeds, less where faces crowd
    """

    mean: float
    spread: float
    num_faces: int
    limit: float = SAME

    @classmethod
    def of(cls, features: np.ndarray, indices: np.ndarray) -> "Strangers":
        """Those of unit ``features`` (N, D) with neighbours ``indices`` (N, K), the nearest or about so.

        Two random faces are nearly always strangers: median and lower quartile of random pairs, which friends hardly
        move, give mean and spread. Where faces crowd, the official threshold of LCDE, of the sample, is the limit.
        """
        faces = np.random.default_rng(0).permutation(len(features))
        first, second = faces[:SAMPLE], faces[-SAMPLE:]
        pairs = features[first] @ features[second].T
        if len(faces) < 2 * SAMPLE:
            pairs = pairs[first[:, None] != second]
        if not len(pairs):
            return cls(1.0, 0.0, len(features))
        lower, median = np.quantile(pairs, [0.25, 0.5])
        spread = float((median - lower) / norm.ppf(0.75))
        # Many directions in D dimensions differ at least as much (Welch 1974); a handful may seem not to.
        strangers = cls(float(median), max(spread, features.shape[1] ** -0.5), len(features))
        near = np.einsum("nkd,nd->nk", features[indices[first, :NEAREST]], features[first])
        if not strangers._crowded(near[:, 1]):
            return strangers
        return cls(**vars(strangers) | {"limit": min(SAME, official_similarity_threshold(near))})

    def similarity(self, per_face: float) -> float:
        """The similarity that ``per_face`` of the N strangers of a face are expected to reach, `limit` at most."""
        return min(self.limit, self.mean + self.spread * float(norm.isf(self._tail(per_face))))

    def _crowded(self, nearest: np.ndarray) -> bool:
        """Whether the normal tail of strangers reaches beyond friends, as it does in few dimensions.

        Directions that fill a sphere evenly have a shorter tail: their similarity is a beta variable. In galleries of
        photographs, nearly all nearest neighbours are on the same side of both tails, be they friends or strangers.
        """
        normal, range_ = self.similarity(RARE), 1 - self.mean
        if normal >= SAME:
            return True
        shape = max(0.5, ((range_ / self.spread) ** 2 - 1) / 2)  # (d - 1) / 2 in d dimensions, whose spread is d^-1/2
        even = self.mean + range_ * (2 * beta.isf(self._tail(RARE), shape, shape) - 1)
        return bool(((nearest >= even) & (nearest < normal)).mean() > CROWDED)

    def _tail(self, per_face: float) -> float:
        return min(0.5, per_face / self.num_faces)
