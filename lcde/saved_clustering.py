"""A clustering kept for later faces: its file, and their assignment to it."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from lcde.clustering.assign import assign_faces
from lcde.clustering.centroids import CentroidRule
from lcde.clustering.communities import communities
from lcde.clustering.components import connected_labels, label_noise
from lcde.clustering.edges import edge_similarities
from lcde.clustering.pipeline import Clustering, Networks
from lcde.clustering.strangers import Strangers
from lcde.clustering.thresholds import ThresholdRule
from lcde.clustering.whitening import Whitening
from lcde.data.formats import UNREADABLE, write_atomically
from lcde.data.knn import extend_knn
from lcde.data.part import Part
from lcde.errors import InputError

TRIALS = 10  # runs of Infomap among new faces


@dataclass(frozen=True)
class SavedClustering:
    """Clustered faces as the assignment of later ones needs them.

    features:        (N, D) float32, unit L2 norm
    indices, similarities:  (N, K) int32 and float32, the kNN graph, of all N faces where they are fewer than ``k``
    labels:          (N,) int64 from 0, -1 for noise
    k:               neighbours, the face itself counted
    thresholds:      by which it joined and merged; they, and how its clusters let faces be seen, are found anew as the
        gallery grows
    edge_threshold:  above which a probability joins
    trained:         whether trained networks made it
    """

    features: np.ndarray
    indices: np.ndarray
    similarities: np.ndarray
    labels: np.ndarray
    k: int
    thresholds: ThresholdRule
    edge_threshold: float
    trained: bool

    @classmethod
    def of(cls, part: Part, clustered: Clustering, k: int, trained: bool) -> "SavedClustering":
        """Keep ``clustered``, the clustering of ``part``, whose graph has ``k`` neighbours or all faces there are."""
        labels = label_noise(clustered.labels, clustered.noise)
        graph, rule = (part.indices, part.similarities), (clustered.thresholds, float(clustered.edge_threshold))
        return cls(part.features, *graph, labels, k, *rule, trained)

    @classmethod
    def load(cls, path: str | Path) -> "SavedClustering":
        """Read what `save` wrote; raises `InputError` where the file is missing or anything in it does not fit."""
        if not Path(path).is_file():
            raise InputError(f"clustering {path} does not exist; eval.py keeps one with save_to=….")
        try:
            with np.load(path) as archive:
                values = {field.name: archive[field.name] for field in fields(cls)}
        except UNREADABLE as error:
            raise InputError(f"{path} is not a clustering that eval.py kept with save_to=…: {error}.") from None
        for name in _misfits(**values):
            raise InputError(f"{path} is damaged: its {name} do not fit; keep the clustering again with save_to=….")
        scalars = {name: value.item() for name, value in values.items() if value.ndim == 0}
        thresholds = [None if np.isnan(value) else float(value) for value in values["thresholds"]]
        return cls(**values | scalars | {"thresholds": ThresholdRule(*thresholds)})

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` file, for `load`."""
        thresholds = np.array([np.nan if value is None else value for value in vars(self.thresholds).values()])
        write_atomically(Path(path), lambda file: np.savez(file, **vars(self) | {"thresholds": thresholds}))

    def assign(
        self, features: np.ndarray, bind: Callable[[np.ndarray, np.ndarray], Networks] | None
    ) -> "SavedClustering":
        """This clustering with new faces of unit ``features`` (n, D) float32 behind the known ones, which all stay.

        ``bind`` binds the trained networks to features (N + n, D) and graph (N + n, K); None where there are none.
        New faces are clustered among themselves by the rule of the clustering; each then joins the known cluster, never
        noise, or the group of new ones to which its edges are heaviest; what new faces open merges, with known clusters
        too, by the rule for centroids. Raises `InputError` where D differs, and unless the networks are there exactly
        if they made the clustering.
        """
        width, new_width = self.features.shape[1], features.shape[1]
        if new_width != width:
            raise InputError(f"the new faces have a width of {new_width}, those of the clustering of {width}.")
        if self.trained != (bind is not None):
            raise InputError(
                "trained networks made the clustering; give them with checkpoint=… or lce_weights=… and pce_weights=…."
                if self.trained
                else "the clustering was made without trained networks; new faces are assigned without any, too."
            )
        union = np.concatenate([self.features, features])
        indices, similarities = extend_knn(union, self.indices, self.similarities, self.k)
        if bind is None:
            labels = self._assign_by_similarity(union, indices, similarities)
        else:
            labels = self._assign_by_networks(union, indices, similarities, bind(union, indices))
        return replace(self, features=union, indices=indices, similarities=similarities, labels=labels)

    def _assign_by_similarity(self, union: np.ndarray, indices: np.ndarray, similarities: np.ndarray) -> np.ndarray:
        """Labels (N + n,) of all, from the features (N + n, D) and the graph (N + n, K) of all."""
        num_known = len(self.labels)
        if self.thresholds.strangers_per_centroid is None:
            return self._join(indices, similarities[num_known:], self.thresholds.edges(similarities), None)
        strangers = Strangers.of(union, indices)
        # Seen as the known clusters let faces be, then as all do, as when all are clustered at once.
        first = self._assign_whitened(self.labels, union, indices, similarities, strangers)
        return self._assign_whitened(first, union, indices, similarities, strangers)

    def _assign_whitened(
        self, labels: np.ndarray, union: np.ndarray, indices: np.ndarray, similarities: np.ndarray, strangers: Strangers
    ) -> np.ndarray:
        """As `_assign_by_similarity`, seen as clusters ``labels`` (L,) of the first L faces let them be."""
        num_known = len(self.labels)
        seen = Whitening.of(union[: len(labels)], labels)(union)
        whitened = Strangers.of(seen, indices)
        weights = edge_similarities(seen, indices[num_known:], num_known)
        joined = self._join(indices, weights, self.thresholds.edges(similarities, whitened), None)
        return self._merge(joined, seen, self.thresholds.centroids(strangers, whitened), indices, similarities)

    def _assign_by_networks(
        self, union: np.ndarray, indices: np.ndarray, similarities: np.ndarray, networks: Networks
    ) -> np.ndarray:
        """Labels (N + n,) of all, from the features (N + n, D) and the graph (N + n, K) of all."""
        num_known = len(self.labels)
        weights = similarities[num_known:] * networks.connectivity(num_known)
        labels = self._join(indices, weights, self.thresholds.edges(similarities), networks)
        if self.thresholds.strangers_per_centroid is None:
            return labels
        strangers = Strangers.of(union, indices)
        return self._merge(labels, union, self.thresholds.centroids(strangers, strangers), indices, similarities)

    def _join(
        self, indices: np.ndarray, weights: np.ndarray, threshold: float, networks: Networks | None
    ) -> np.ndarray:
        """Labels (N + n,) of all: new faces join by their edges in the graph (N + n, K), of ``weights`` (n, K)."""
        edges, weights = self._edges(indices[len(self.labels) :], weights, threshold, networks)
        groups = self._groups(edges, weights, len(indices) - len(self.labels))
        return np.concatenate([self.labels, assign_faces(edges, weights, self.labels, groups)])

    def _edges(
        self, found: np.ndarray, weights: np.ndarray, threshold: float, networks: Networks | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Edges (M, 2) of new faces that join them to some of ``found`` (n, K), and their weights (M,).

        Those of positive ``weights`` (n, K) from ``threshold`` on; with networks, PCENet decides about the heaviest of
        each face.
        """
        num_known = len(self.labels)
        joins = weights >= threshold
        if networks is not None:
            rows, nearest = np.arange(len(found)), 1 + weights[:, 1:].argmax(axis=1)
            pairs = np.stack([rows + num_known, found[rows, nearest]], axis=1).astype(np.int64)
            joins[rows, nearest] = networks.edge_probability(pairs) > self.edge_threshold
        noise = np.append(self.labels == -1, np.zeros(len(found), dtype=bool))
        joins[:, 0] = False
        joins &= (weights > 0) & ~noise[found]
        rows, columns = np.nonzero(joins)
        return np.stack([rows + num_known, found[rows, columns]], axis=1), weights[rows, columns]

    def _groups(self, edges: np.ndarray, weights: np.ndarray, num_new: int) -> np.ndarray:
        """Clusters (n,) of the new faces among themselves, made of their edges as the known clusters were."""
        num_known = len(self.labels)
        among = edges[:, 1] >= num_known
        ends = edges[among] - num_known
        if self.trained:
            return connected_labels(ends, num_new)
        return communities(ends, weights[among], num_new, TRIALS, seed=0)

    def _merge(
        self, labels: np.ndarray, seen: np.ndarray, rule: CentroidRule, indices: np.ndarray, similarities: np.ndarray
    ) -> np.ndarray:
        """``labels`` (N + n,) after merging what new faces, by their edges in the graph (N + n, K), have opened."""
        num_known, kept = len(self.labels), labels != -1
        edges = rule.edges(labels, indices[num_known:], similarities[num_known:], num_known)
        number = np.cumsum(kept) - 1  # of a face among those that are not noise
        edges = number[edges[kept[edges].all(axis=1)]]
        seen = seen if kept.all() else seen[kept]  # millions of faces are not copied for nothing
        labels = labels.copy()
        labels[kept] = rule.merge(labels[kept], seen, edges, int(self.labels.max()) + 1)
        return labels


def _misfits(
    features: np.ndarray,
    indices: np.ndarray,
    similarities: np.ndarray,
    labels: np.ndarray,
    k: np.ndarray,
    thresholds: np.ndarray,
    edge_threshold: np.ndarray,
    trained: np.ndarray,
) -> list[str]:
    """Names of the values of a saved clustering that cannot be: the others are judged by the features before them."""
    if features.ndim != 2 or features.dtype != np.float32 or not features.size:
        return ["features"]
    if k.ndim != 0 or k.dtype.kind != "i" or k < 2:
        return ["k"]
    num_faces = len(features)
    graph = num_faces, min(k, num_faces)
    unit = np.abs(np.linalg.norm(features, axis=1) - 1) < 1e-3
    fits = {
        "features": unit.all(),
        "indices": indices.shape == graph
        and indices.dtype == np.int32
        and indices.min() >= 0
        and indices.max() < num_faces,
        "similarities": similarities.shape == graph
        and similarities.dtype == np.float32
        and np.abs(similarities).max() < 1 + 1e-3,
        "labels": labels.shape == (num_faces,)
        and labels.dtype == np.int64
        and np.array_equal(np.union1d(labels, -1), np.arange(-1, labels.max() + 1)),
        "thresholds": thresholds.shape == (len(fields(ThresholdRule)),)
        and thresholds.dtype.kind == "f"
        and not np.isinf(thresholds).any(),
        "edge threshold": edge_threshold.ndim == 0 and edge_threshold.dtype.kind == "f" and np.isfinite(edge_threshold),
        "networks": trained.ndim == 0 and trained.dtype == bool,
    }
    return [name for name, fit in fits.items() if not fit]
