"""Clustering without a trained model: communities and centroids, with thresholds from the distribution of impostors."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from lcde.clustering.assignment import assign_faces
from lcde.clustering.centroids import merge_similar
from lcde.clustering.communities import communities
from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import distinct_pairs, edges_above
from lcde.clustering.impostors import Impostors
from lcde.clustering.whitening import transformed
from lcde.data.gallery import Gallery, KNNGraph, row_blocks
from lcde.data.knn import edge_similarities
from lcde.methods.method import Clustering, Details, Rule, Scores, timed
from lcde.methods.settings import Within

TINY = float(np.finfo(np.float32).tiny)  # least threshold: edges of less similarity never join
MOST = 0.6  # share of the faces that must have enough edges
FEW = 2  # edges of a face, too few to accept a wrong one among them
STEPS = 30  # numbers of impostors per face that are tried


@dataclass
class UnsupervisedRule(Rule):
    """Communities of kNN edges that impostors hardly ever reach, merged by their centroids; twice.

    The first clusters tell which random pairs are of impostors, what all faces share (`common_offset`), and in which
    directions the faces of one identity differ (`within_cluster_whitening`); the second ones are found without these.

    Attributes
    ----------
    impostors_per_face : float
        An edge counts, and two clusters merge, above the similarity that so many impostors of a face are expected to
        reach.
    false_edges : float
        In the second pass an edge counts at lower similarities, too, as long as this share of most faces' edges is
        expected to be of impostors: where there are many photographs of each person, a few wrong edges join nothing.
    impostor_merges : float
        In the second pass clusters merge by average linkage, too, above the similarity that so many of all pairs of
        clusters are expected to reach: with fewer clusters left, lower similarities suffice.
    num_trials : int
        Runs of the community detection, of which the one of the shortest codelength counts.
    seed : int
        Of the community detection.
    centring, whitening, merging : bool
        Whether these steps are taken.
    """

    impostors_per_face: Annotated[float, Within(0)] = 0.0003
    false_edges: Annotated[float, Within(0)] = 0.1
    impostor_merges: Annotated[float, Within(0)] = 0.1
    num_trials: Annotated[int, Within(1)] = 10
    seed: Annotated[int, Within(0)] = 0
    centring: bool = True
    whitening: bool = True
    merging: bool = True

    def __call__(self, gallery: Gallery, scores: Scores | None = None) -> Clustering:
        """Cluster ``gallery``.

        In the details, connectivity is 1 where the whitened similarity reaches its threshold and 0 elsewhere,
        symmetrised; density is its sum over whitened similarities, as in LCDE; all edges above the threshold are
        similar edges.
        """
        seconds: dict[str, float] = {}
        with timed(seconds, "components"):
            labels, weighted, threshold = self._cluster(gallery, np.empty(0, dtype=np.int64))
        with timed(seconds, "edges"):
            above, (edges, _) = weighted.similarities >= threshold, edges_above(weighted, threshold)
            connectivity = symmetrise(above.astype(np.float32), weighted.indices)
            densities, similar = density(connectivity, weighted.similarities), distinct_pairs(edges)[0]
            details = Details(connectivity, densities, edges_similar=similar, similarity_threshold=threshold)
        return Clustering(labels, seconds, details)

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
        return self._cluster(gallery, known_labels)[0]

    def transformed(self, gallery: Gallery, labels: np.ndarray) -> np.ndarray:
        """Unit features (N, D) after `centring` and `whitening` by the clusters ``labels`` (N,), -1 for noise."""
        return transformed(gallery, labels, self.centring, self.whitening)

    def _cluster(self, gallery: Gallery, known_labels: np.ndarray) -> tuple[np.ndarray, KNNGraph, float]:
        """Labels (N + n,) of all faces, and the graph of all, here weighted, with its threshold."""
        graph, num_known = gallery.graph, len(known_labels)
        alone = known_labels.max(initial=-1) + 1 + np.arange(len(gallery) - num_known)
        labels = np.concatenate([known_labels, alone])
        for first in (True, False):
            features = self.transformed(gallery, labels)
            # The neighbours stay those of the features as given: rows are no longer in descending order.
            graph = KNNGraph(graph.indices, edge_similarities(features, graph.indices))
            impostors = Impostors.of(features, labels, graph.similarities)
            strict = max(impostors.similarity(self.impostors_per_face), TINY)
            counted, threshold = (graph, strict) if first else self._more_edges(graph, strict, impostors)
            labels = self._join(counted, threshold, known_labels)
            if self.merging:
                alike = strict if first else max(impostors.with_look_alikes(self.impostors_per_face), TINY)
                wrong = 0 if first else self.impostor_merges
                labels = merge_similar(labels, features, graph, impostors, alike, wrong, num_known)
        return labels, counted, threshold

    def _more_edges(self, graph: KNNGraph, strict: float, impostors: Impostors) -> tuple[KNNGraph, float]:
        """The graph with similarity 0 where an edge does not count, and a threshold of `strict` or less.

        The threshold is the lowest one at which, for a share of `MOST` faces, the expected number of wrong edges is at
        most `false_edges` times the number of edges beyond the first `FEW`. Below ``strict``, an edge counts only if
        both of its faces have more than `FEW` edges above the threshold.
        """
        for per_face in np.geomspace(1, max(self.impostors_per_face, 1e-6), STEPS):
            threshold = max(impostors.with_look_alikes(per_face), TINY)
            above = ((graph.similarities[rows, 1:] >= threshold).sum(axis=1) for rows in row_blocks(len(graph)))
            num_edges = np.concatenate(list(above))
            if per_face <= self.false_edges * (np.quantile(num_edges, 1 - MOST) - FEW):
                break
        else:
            return graph, strict
        many, similarities = num_edges > FEW, graph.similarities.copy()
        for rows in row_blocks(len(graph)):
            refused = (similarities[rows] < strict) & ~(many[rows, None] & many[graph.indices[rows]])
            refused[:, 0] = False
            similarities[rows][refused] = 0
        return KNNGraph(graph.indices, similarities), min(threshold, strict)

    def _join(self, graph: KNNGraph, threshold: float, known_labels: np.ndarray) -> np.ndarray:
        """Labels (N + n,): communities of the n new faces, which then join known clusters, if there are any."""
        num_known = len(known_labels)
        edges, weights = edges_above(graph, threshold, num_known)
        among, num_new = edges[:, 1] >= num_known, len(graph) - num_known
        groups = communities(edges[among] - num_known, weights[among], num_new, self.num_trials, self.seed)
        return assign_faces(edges, weights, known_labels, groups) if num_known else groups
