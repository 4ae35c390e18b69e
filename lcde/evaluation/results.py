"""A result: one method on one part, with its scores where identities are known."""

import sys
from dataclasses import dataclass, replace

import numpy as np

from lcde.data.gallery import Gallery
from lcde.methods.method import Clustering, Method
from lcde.metrics import Contingency, Score, bcubed, nmi, pairwise


@dataclass(frozen=True)
class Result:
    """One method on one part.

    Attributes
    ----------
    part, method : str
    clustering : Clustering
        What was scored; noise faces are scored in the clusters that they came from.
    seconds : dict of str to float
        Time of each stage, of the kNN graph ("knn") and in all ("total").
    held_out : bool
        Whether the part is one of held-out identities, whose scores choose and are not results.
    baseline : bool
        Whether the method stands beside the one that is evaluated.
    pairwise, bcubed : Score, optional
        None where identities are unknown.
    nmi : float, optional
    peak_memory_mb : float, optional
        Largest memory of the process so far; None on Windows.
    """

    part: str
    method: str
    clustering: Clustering
    seconds: dict[str, float]
    held_out: bool = False
    baseline: bool = False
    pairwise: Score | None = None
    bcubed: Score | None = None
    nmi: float | None = None
    peak_memory_mb: float | None = None

    @property
    def cluster_sizes(self) -> np.ndarray:
        """Faces of each cluster that has any: (C,) int64; labels of assigned faces may leave numbers out."""
        sizes = np.bincount(self.clustering.labels)
        return sizes[sizes > 0]

    @property
    def num_clusters(self) -> int:
        return len(self.cluster_sizes)

    @property
    def num_noise(self) -> int:
        """Faces of small or sparse clusters, which scores and `num_clusters` count in those clusters."""
        return 0 if self.clustering.noise is None else int(self.clustering.noise.sum())

    @property
    def f_score(self) -> float:
        """Mean of pairwise and BCubed F, by which checkpoints, thresholds and jobs are chosen; NaN where unknown."""
        if self.pairwise is None or self.bcubed is None:
            return float("nan")
        return (self.pairwise.f_score + self.bcubed.f_score) / 2


def evaluate(gallery: Gallery, method: Method, baseline: bool = False, show_progress: bool = False) -> Result | None:
    """Cluster ``gallery`` by ``method`` and score it where identities are known.

    All processes of a job call this; those of rank 1 and above get None.
    """
    clustering = method.cluster(gallery, show_progress)
    if clustering is None:
        return None
    seconds = {"knn": gallery.knn_seconds, **clustering.seconds}
    seconds["total"] = sum(seconds.values())
    result = score(gallery.name, method.name, clustering, seconds, gallery.labels_true)
    return replace(result, held_out=gallery.held_out, baseline=baseline)


def score(
    part: str, method: str, clustering: Clustering, seconds: dict[str, float], labels_true: np.ndarray | None
) -> Result:
    """The result of ``clustering``, with scores where ``labels_true`` (N,) are known."""
    result = Result(part, method, clustering, seconds, peak_memory_mb=_peak_memory_mb())
    if labels_true is None:
        return result
    table = Contingency.of(labels_true, clustering.labels)
    return replace(result, pairwise=pairwise(table), bcubed=bcubed(table), nmi=nmi(table))


def _peak_memory_mb() -> float | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
