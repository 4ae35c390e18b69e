"""Clustering without a trained model: communities and centroids, with thresholds from the distribution of impostors."""

from dataclasses import dataclass

import numpy as np

from lcde.clustering.density import density, symmetrise
from lcde.clustering.whitening import Whitened, transformed
from lcde.data.gallery import Gallery
from lcde.methods.method import Clustering, Details, Rule, Scores, timed
from lcde.methods.second_pass import NONE_KNOWN, Found, SecondPass


@dataclass
class UnsupervisedRule(Rule, SecondPass):
    """Communities of kNN edges that impostors hardly ever reach, merged by similarity; twice.

    The first pass counts edges above the strict threshold only and merges by centroids only; its clusters are what the
    second pass, with all settings as `SecondPass` explains them, starts from.
    """

    has_density = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.read_trees()

    def __call__(self, gallery: Gallery, scores: Scores | None = None) -> Clustering:
        """Cluster ``gallery``.

        In the details, connectivity is 1 where an edge counts and 0 elsewhere, symmetrised; density is the sum of it
        times the whitened similarity, as in LCDE.
        """
        seconds: dict[str, float] = {}
        with timed(seconds, "components"):
            labels, graph, counted, threshold = self._cluster(gallery, NONE_KNOWN)
        with timed(seconds, "edges"):
            connectivity = symmetrise(counted.astype(np.float32), graph.indices)
            densities = density(connectivity, graph.similarities)
        return Clustering(labels, seconds, Details(connectivity, densities, similarity_threshold=threshold))

    def assign(self, gallery: Gallery, known_labels: np.ndarray, scores: Scores | None = None) -> np.ndarray:
        """Labels of all faces of ``gallery``: ``known_labels`` of the first ones stay, the others are assigned to them.

        The new faces are clustered among themselves, then each joins the known cluster or the new group to which its
        edges have the largest total weight (`assign_faces`); what is new then merges by centroids.

        Parameters
        ----------
        gallery : Gallery
            N known faces followed by n new ones.
        known_labels : (N,) int64
            Numbered from 0, -1 for noise, which no face joins.
        scores : None

        Returns
        -------
        (N + n,) int64
        """
        return self._cluster(gallery, known_labels).labels

    def transformed(self, gallery: Gallery, labels: np.ndarray) -> np.ndarray:
        """Unit features (N, D) after `centring` and `whitening` by the clusters ``labels`` (N,), -1 for noise."""
        return transformed(gallery, labels, self.centring, self.whitening)[:]

    def _cluster(self, gallery: Gallery, known_labels: np.ndarray) -> Found:
        """Labels (N + n,) of all faces, by edges of the second pass."""
        num_known = len(known_labels)
        alone = known_labels.max(initial=-1) + 1 + np.arange(len(gallery) - num_known)
        first = Whitened.by(gallery, np.concatenate([known_labels, alone]), self.centring, self.whitening)
        threshold = self.strict_threshold(first)
        labels = self.join(first.graph, first.graph.similarities >= threshold, known_labels)
        labels = self.merge(labels, first, threshold, num_known, only_centroids=True)
        del first  # at millions of faces, gigabytes
        return self.find(gallery, labels, known_labels=known_labels)
