"""LCDE's rule: connectivity, density, edges, clusters; and a second pass that the paper does not have."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from lcde.clustering.assignment import assign_faces
from lcde.clustering.components import connected_labels
from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import official_similarity_threshold, select_edges, values_of_edges
from lcde.clustering.joining import join_clusters
from lcde.clustering.whitening import Whitened
from lcde.data.gallery import Gallery
from lcde.errors import InputError
from lcde.methods.method import Clustering, Details, Rule, Scores, timed
from lcde.methods.second_pass import SecondPass
from lcde.settings import Within


@dataclass
class LCDERule(Rule):
    """The paper's rule; with the default settings, labels are those of the published program.

    Attributes
    ----------
    similarity_threshold : float, optional
        τ of the similar edges; None takes the official one, the mean similarity to the 3 nearest neighbours.
    edge_threshold : float
        A density edge joins if its probability by PCENet is above this.
    min_connectivity : float
        Density edges of less connectivity are dropped without asking PCENet; 0 in the paper.
    ask_strong : bool
        Whether PCENet is also asked about density edges of s·c >= τ, as in the paper; unasked they join.
    second_pass : SecondPass, optional
        Finds the clusters anew after the rule, edges weighted by s·c; None: the paper's clusters stay.
    precision : str
        Of the networks: "float32", or "auto" for bfloat16 where the device gains from it.

    References
    ----------
    Shin et al.: Local connectivity-based density estimation for face clustering. CVPR 2023, section 3.
    """

    similarity_threshold: Annotated[float | None, Within(-1, 1)] = None
    edge_threshold: Annotated[float, Within(0, 1)] = 0.5
    min_connectivity: Annotated[float, Within(0, 1)] = 0.0
    ask_strong: bool = True
    second_pass: SecondPass | None = None
    precision: Literal["float32", "auto"] = "float32"

    needs_scores = True
    has_density = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.second_pass, SecondPass | None):
            raise InputError(f"clustering.second_pass={self.second_pass} must be a SecondPass (_target_: …) or null.")

    def __call__(self, gallery: Gallery, scores: Scores | None) -> Clustering:
        assert scores is not None
        graph = gallery.graph
        seconds = {"connectivity": 0.0, "edges": 0.0, "pairs": 0.0, "components": 0.0}
        with timed(seconds, "connectivity"):
            directed = scores.connectivity()
        with timed(seconds, "edges"):
            connectivity = symmetrise(directed, graph.indices)
            del directed  # at millions of faces, gigabytes
            densities = density(connectivity, graph.similarities)
            tau = self._similarity_threshold(gallery)
            edges_density, edges_similar = select_edges(graph, connectivity, densities, tau)
            strength = values_of_edges(connectivity, edges_density, graph.indices)
            certain = np.zeros(len(strength), dtype=bool)
            if not self.ask_strong:
                similarity = values_of_edges(graph.similarities, edges_density, graph.indices)
                certain = similarity.astype(np.float64) * strength >= tau  # as precise as `select_edges`
            candidates = np.flatnonzero(~certain & (strength >= self.min_connectivity))
            candidates = candidates[np.argsort(-strength[candidates], kind="stable")]

        with timed(seconds, "components"):
            ask, asked = timed(seconds, "pairs")(scores.edge_probability), edges_density[candidates]
            joined = np.concatenate([edges_similar, edges_density[certain]])
            labels, answers = join_clusters(joined, asked, len(gallery), ask, self.edge_threshold)
            probability = np.full(len(edges_density), np.nan, dtype=np.float32)
            probability[candidates] = answers
        seconds["components"] -= seconds["pairs"]
        details = Details(connectivity, densities, edges_density, probability, self.edge_threshold, edges_similar, tau)
        if self.second_pass is not None:
            with timed(seconds, "second_pass"):
                labels = self._merge(gallery, labels, self.second_pass)
                labels = self.second_pass.find(gallery, labels, connectivity).labels
        return Clustering(labels, seconds, details)

    def assign(self, gallery: Gallery, known_labels: np.ndarray, scores: Scores | None) -> np.ndarray:
        """Labels of all faces of ``gallery``: ``known_labels`` of the first ones stay, the others are assigned to them.

        The edges of a new face with s·c >= τ connect it. So does the one of largest s·c if PCENet accepts it, which is
        asked as in a clustering (`ask_strong`, `min_connectivity`). New faces that these edges connect form a group;
        each face then joins the cluster or group with the largest total s·c (`assign_faces`), and with a second pass,
        what is new merges as in it.

        Parameters
        ----------
        gallery : Gallery
            N known faces followed by n new ones.
        known_labels : (N,) int64
            Numbered from 0, -1 for noise, which no face joins.
        scores : Scores
            Of ``gallery``.

        Returns
        -------
        (N + n,) int64
        """
        assert scores is not None
        num_known = len(known_labels)
        indices, connectivity = gallery.graph.indices[num_known:], scores.connectivity(num_known)
        weights = gallery.graph.similarities[num_known:] * connectivity
        joins = weights >= self._similarity_threshold(gallery)
        rows, best = np.arange(len(indices)), 1 + weights[:, 1:].argmax(axis=1)
        accepted = joins[rows, best] & (not self.ask_strong)
        asked = np.flatnonzero(~accepted & (connectivity[rows, best] >= self.min_connectivity))
        strongest = np.stack([rows + num_known, indices[rows, best]], axis=1).astype(np.int64)
        accepted[asked] = scores.edge_probability(strongest[asked]) > self.edge_threshold
        joins[rows, best] = accepted
        joins[:, 0] = False
        rows, columns = np.nonzero(joins & (weights > 0))
        edges = np.stack([rows + num_known, indices[rows, columns]], axis=1)
        groups = connected_labels(edges[edges[:, 1] >= num_known] - num_known, len(indices))
        labels = assign_faces(edges, weights[rows, columns], known_labels, groups)
        return labels if self.second_pass is None else self._merge(gallery, labels, self.second_pass, num_known)

    def _similarity_threshold(self, gallery: Gallery) -> float:
        if self.similarity_threshold is not None:
            return self.similarity_threshold
        return official_similarity_threshold(gallery.graph.similarities)

    def _merge(self, gallery: Gallery, labels: np.ndarray, by: SecondPass, num_known: int = 0) -> np.ndarray:
        if not by.merging:
            return labels
        whitened = Whitened.by(gallery, labels, by.centring, by.whitening)
        return by.merge(labels, whitened, by.strict_threshold(whitened), num_known)
