"""Clusters found anew among features that other clusters have centred and whitened."""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple, get_args

import numpy as np

from lcde.clustering.assignment import assign_faces
from lcde.clustering.communities import communities, communities_of_graph
from lcde.clustering.edges import edges_above
from lcde.clustering.likelihood import TwoCovariance
from lcde.clustering.merge_trees import CERTAIN, FEW_CLUSTERS, MANY_CLUSTERS, MergeTrees, Part, describe_pairs
from lcde.clustering.merging import Merging
from lcde.clustering.whitening import Whitened
from lcde.data.gallery import Gallery, KNNGraph, row_blocks
from lcde.settings import Within, check_settings

TINY = float(np.finfo(np.float32).tiny)  # least threshold: edges of less similarity never join
MIDDLE = 0.3, 0.6  # quantiles between which the numbers of edges of the faces are averaged
FEW = 2  # edges of a face, too few to accept a wrong one among them
COMPARED = 10  # impostors per face that reach the similarity from which a kNN edge makes two clusters be compared
STEPS = 30  # numbers of impostors per face that are tried
NONE_KNOWN = np.empty(0, dtype=np.int64)


class Found(NamedTuple):
    """Clusters, and the edges that they come from.

    Attributes
    ----------
    labels : (N,) int64
    graph : KNNGraph
        With whitened similarities, so that rows are not in descending order.
    counted : (N, K) bool
        Which edges count.
    threshold : float
        Least similarity of those that do.
    """

    labels: np.ndarray
    graph: KNNGraph
    counted: np.ndarray
    threshold: float


@dataclass
class SecondPass:
    """Communities of kNN edges that impostors hardly ever reach, merged by similarity; thresholds by given clusters.

    The given clusters tell which random pairs are of impostors, what all faces share (`common_offset`), and in which
    directions the faces of one identity differ (`within_cluster_whitening`). Otherwise they do not count: the clusters
    are found anew.

    Attributes
    ----------
    impostors_per_face : float
        An edge counts, and two clusters merge, above the similarity that so many impostors of a face are expected to
        reach.
    false_edges : float
        An edge counts at lower similarities, too, as long as this share of a typical face's edges is expected to be of
        impostors: where there are many photographs of each person, a few wrong edges join nothing.
    impostor_merges : float
        Clusters merge by average linkage, too, above the similarity that so many of all pairs of clusters are expected
        to reach: with fewer clusters left, lower similarities suffice.
    expected_merges : float
        At last, clusters merge by likelihood (`TwoCovariance`): so many pairs of clusters are expected to be of one
        identity before anything is known of them.
    merge_trees : str, optional
        File of trees that were trained on other galleries (`MergeTrees`), "shipped" for those that come with lcde.
        `FEW_CLUSTERS` or fewer merge by these in place of average linkage and likelihood, up to `MANY_CLUSTERS` where
        the merges are certain.
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
    expected_merges: Annotated[float, Within(0)] = 1.0
    merge_trees: str | None = "shipped"
    num_trials: Annotated[int, Within(1)] = 3
    seed: Annotated[int, Within(0)] = 0
    centring: bool = True
    whitening: bool = True
    merging: bool = True

    def __post_init__(self) -> None:
        check_settings(self, "clustering.second_pass.")
        self.read_trees()  # not every gallery needs them, but a wrong file is reported at the start

    def read_trees(self) -> dict[Part, MergeTrees] | None:
        """The trees that merge few and many clusters, if any."""
        return {part: MergeTrees.read(self.merge_trees, part) for part in get_args(Part)} if self.merge_trees else None

    def find(
        self,
        gallery: Gallery,
        labels: np.ndarray,
        connectivity: np.ndarray | None = None,
        known_labels: np.ndarray = NONE_KNOWN,
    ) -> Found:
        """Find the clusters of ``gallery`` anew.

        Parameters
        ----------
        gallery : Gallery
        labels : (N,) int64
            The given clusters, numbered from 0, -1 for noise.
        connectivity : (N, K) float32, optional
            Symmetrised. The weight of an edge is its similarity times its connectivity, or the similarity alone.
        known_labels : (n,) int64
            Of the first faces, which keep them.
        """
        whitened = Whitened.by(gallery, labels, self.centring, self.whitening)
        counted, threshold = self._counted_edges(whitened)
        if connectivity is not None:
            counted &= connectivity > 0
        found = self.join(whitened.graph, counted, known_labels, connectivity)
        alike = max(whitened.impostors.with_look_alikes(self.impostors_per_face), TINY)
        merged = self.merge(found, whitened, alike, len(known_labels))
        return Found(merged, whitened.graph, counted, threshold)

    def strict_threshold(self, whitened: Whitened) -> float:
        """Similarity that ``impostors_per_face`` impostors of a face are expected to reach."""
        return max(whitened.impostors.similarity(self.impostors_per_face), TINY)

    def join(
        self, graph: KNNGraph, counted: np.ndarray, known_labels: np.ndarray, connectivity: np.ndarray | None = None
    ) -> np.ndarray:
        """Labels (N,): communities of the ``counted`` edges; faces after the known ones may join these."""
        num_known = len(known_labels)
        if not num_known:
            return communities_of_graph(graph, counted, self.num_trials, self.seed, connectivity)
        weights = np.where(counted, graph.similarities * (1 if connectivity is None else connectivity), 0)
        edges, weights = edges_above(KNNGraph(graph.indices, weights), TINY, num_known)
        among, num_new = edges[:, 1] >= num_known, len(graph) - num_known
        groups = communities(edges[among] - num_known, weights[among], num_new, self.num_trials, self.seed)
        return assign_faces(edges, weights, known_labels, groups)

    def merge(
        self, labels: np.ndarray, whitened: Whitened, threshold: float, num_known: int = 0, only_centroids: bool = False
    ) -> np.ndarray:
        """``labels`` (N,) after merges by centroids above ``threshold``, then by trees or by linkage and likelihood.

        Trees that were trained on other galleries may be wrong about this one. Of many clusters, their merges count
        only if what they join looked alike from the start, and if they leave no more clusters than the others do.
        """
        if not self.merging:
            return labels
        compared = whitened.impostors.similarity(COMPARED)
        merging = Merging(labels, whitened.features, whitened.graph, compared, num_known)
        merging.by_centroids(threshold)
        if only_centroids:
            return merging.labels
        trees, few = self.read_trees(), merging.num_clusters <= FEW_CLUSTERS
        judged, log_odds = merging, -np.inf
        if trees and merging.num_clusters <= MANY_CLUSTERS:
            model = TwoCovariance.of(whitened.features, merging.labels)
            describe = partial(describe_pairs, impostors=whitened.impostors, threshold=threshold, model=model)
            judged, of_pairs = deepcopy(merging), trees["few" if few else "many"]
            log_odds = judged.by_judgement(lambda *clusters: of_pairs.log_odds(describe(*clusters)))
            if few:
                return judged.labels
        if self.impostor_merges:
            merging.by_average(partial(whitened.impostors.between_clusters, wrong=self.impostor_merges))
        if self.expected_merges and (model := TwoCovariance.of(whitened.features, merging.labels)):
            merging.by_likelihood(model, self.expected_merges)
        certain = log_odds > CERTAIN and judged.num_clusters <= merging.num_clusters
        return (judged if certain else merging).labels

    def _counted_edges(self, whitened: Whitened) -> tuple[np.ndarray, float]:
        """Which edges count, (N, K) bool, and their threshold, the strict one or less.

        The threshold is the lowest one at which the expected number of wrong edges of a face is at most `false_edges`
        times the number of edges beyond the first `FEW`, averaged over the `MIDDLE` of the faces: one quantile would
        make a step where a few edges are missing. Below the strict one, an edge counts only if both of its faces have
        more than `FEW` edges above the threshold.
        """
        graph, strict = whitened.graph, self.strict_threshold(whitened)
        first, last = (int(quantile * len(graph)) for quantile in MIDDLE)
        for per_face in np.geomspace(1, max(self.impostors_per_face, 1e-6), STEPS):
            threshold = max(whitened.impostors.with_look_alikes(per_face), TINY)
            above = ((graph.similarities[rows, 1:] >= threshold).sum(axis=1) for rows in row_blocks(len(graph)))
            num_edges = np.concatenate(list(above))
            middle = np.partition(num_edges, (first, last))[first : last + 1]
            if per_face <= self.false_edges * (middle.mean() - FEW):
                break
        else:
            return graph.similarities >= strict, strict
        counted, many = graph.similarities >= min(threshold, strict), num_edges > FEW
        for rows in row_blocks(len(graph)):
            both = many[rows, None] & many[graph.indices[rows]]
            counted[rows, 1:] &= ((graph.similarities[rows] >= strict) | both)[:, 1:]
        return counted, min(threshold, strict)
