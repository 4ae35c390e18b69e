"""How similar strangers are, from the faces alone."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

SAMPLE = 5_000  # faces compared with as many others: the quartiles of their similarity stand to the third decimal


@dataclass(frozen=True)
class Strangers:
    """The similarity of two strangers is about normal: its mean and spread (standard deviation) among N faces."""

    mean: float
    spread: float
    num_faces: int

    @classmethod
    def of(cls, features: np.ndarray) -> "Strangers":
        """Those of unit ``features`` (N, D).

        Two random faces are nearly always strangers: median and lower quartile of random pairs, which friends hardly
        move, give mean and spread.
        """
        rng = np.random.default_rng(0)
        first, second = (rng.permutation(len(features))[:SAMPLE] for _ in range(2))
        pairs = (features[first] @ features[second].T)[first[:, None] != second]
        if not len(pairs):
            return cls(1.0, 0.0, len(features))
        lower, median = np.quantile(pairs, [0.25, 0.5])
        return cls(float(median), float((median - lower) / norm.ppf(0.75)), len(features))

    def similarity(self, per_face: float) -> float:
        """The similarity that ``per_face`` of the N strangers of a face are expected to reach."""
        return self.mean + self.spread * float(norm.isf(min(0.5, per_face / self.num_faces)))
