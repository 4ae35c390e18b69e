"""A clustering kept for later faces: its file, and their assignment to it."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from lcde.clustering.assign import assign_faces
from lcde.clustering.centroids import CentroidRule
from lcde.clustering.communities import communities
from lcde.clustering.components import connected_labels, label_noise
from lcde.clustering.pipeline import Clustering, Networks
from lcde.data.formats import UNREADABLE, write_atomically
from lcde.data.knn import build_knn
from lcde.data.part import Part
from lcde.errors import InputError

TRIALS = 10  # runs of Infomap among new faces


@dataclass(frozen=True)
class SavedClustering:
    """Clustered faces as the assignment of later ones needs them.

    features:        (N, D) float32, unit L2 norm
    indices:         (N, K) int32 neighbours, column 0 the face itself; -1 where there were fewer than K faces
    labels:          (N,) int64 from 0, -1 for noise
    similarity_threshold, edge_threshold:  those of the clustering
    centroid_threshold, centroid_edge_similarity:  of its `CentroidRule`, infinite where it had none
    trained:         whether trained networks made it; without them, no row of ``indices`` is read again
    """

    features: np.ndarray
    indices: np.ndarray
    labels: np.ndarray
    similarity_threshold: float
    edge_threshold: float
    centroid_threshold: float
    centroid_edge_similarity: float
    trained: bool

    @classmethod
    def of(cls, part: Part, clustered: Clustering, k: int, trained: bool) -> "SavedClustering":
        """Keep ``clustered``, the clustering of ``part``.

        Without trained networks, later faces have ``k`` neighbours, though ``part`` may have fewer faces than that.
        """
        labels = label_noise(clustered.labels, clustered.noise)
        indices = part.indices if trained else _widen(part.indices, k)
        rule = clustered.centroid_rule or CentroidRule(np.inf, np.inf)
        thresholds = clustered.similarity_threshold, clustered.edge_threshold, rule.threshold, rule.edge_similarity
        return cls(part.features, indices, labels, *thresholds, trained)

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
        return cls(**values | scalars)

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` file, for `load`."""
        write_atomically(Path(path), lambda file: np.savez(file, **vars(self)))

    def assign(
        self, features: np.ndarray, bind: Callable[[np.ndarray, np.ndarray], Networks] | None
    ) -> "SavedClustering":
        """This clustering with new faces of unit ``features`` (n, D) float32 behind the known ones, which all stay.

        ``bind`` binds the trained networks to features (N + n, D) and graph (N + n, K); None where there are none.
        New faces are clustered among themselves by the rule of the clustering; each then joins the known cluster, never
        noise, or the group of new ones to which its edges are heaviest; what new faces open merges, with known clusters
        too, by the rule for centroids. Raises `InputError` where D differs, and unless the networks are
        there exactly if they made the clustering.
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
        num_known, k = self.indices.shape
        union = np.concatenate([self.features, features])
        found, similarities = build_knn(union, min(k, len(union)), num_known)
        indices = np.concatenate([self.indices, _widen(found, k)])
        weights = similarities
        if bind is not None:
            networks = bind(union, indices)
            weights = similarities * networks.connectivity(num_known)
        joins = weights >= self.similarity_threshold
        if bind is not None:
            nearest = 1 + weights[:, 1:].argmax(axis=1)
            rows = np.arange(len(found))
            pairs = np.stack([rows + num_known, found[rows, nearest]], axis=1).astype(np.int64)
            joins[rows, nearest] = networks.edge_probability(pairs) > self.edge_threshold
        noise = np.append(self.labels == -1, np.zeros(len(found), dtype=bool))
        joins[:, 0] = False
        joins &= ~noise[found]
        rows, columns = np.nonzero(joins)
        edges, weights = np.stack([rows + num_known, found[rows, columns]], axis=1), weights[rows, columns]
        labels = assign_faces(edges, weights, self.labels, self._groups(edges, weights, len(found)))
        labels = self._merge(np.concatenate([self.labels, labels]), union, found, similarities)
        return replace(self, features=union, indices=indices, labels=labels)

    def _groups(self, edges: np.ndarray, weights: np.ndarray, num_new: int) -> np.ndarray:
        """Clusters (n,) of the new faces among themselves, made of their edges as the known clusters were."""
        num_known = len(self.labels)
        among = edges[:, 1] >= num_known
        ends = edges[among] - num_known
        if self.trained:
            return connected_labels(ends, num_new)
        return communities(ends, weights[among], num_new, TRIALS, seed=0)

    def _merge(
        self, labels: np.ndarray, features: np.ndarray, indices: np.ndarray, similarities: np.ndarray
    ) -> np.ndarray:
        """``labels`` (N + n,) after merging what the n new faces, of the graph (n, K), have opened."""
        rule = CentroidRule(self.centroid_threshold, self.centroid_edge_similarity)
        edges = rule.edges(indices, similarities, len(self.labels))
        kept = labels != -1
        number = np.cumsum(kept) - 1  # of a face among those that are not noise
        edges = number[edges[kept[edges].all(axis=1)]]
        labels = labels.copy()
        labels[kept] = rule.merge(labels[kept], features[kept], edges, int(self.labels.max()) + 1)
        return labels


def _widen(indices: np.ndarray, k: int) -> np.ndarray:
    """``indices`` (N, K') with columns of -1 up to ``k``."""
    return np.pad(indices, ((0, 0), (0, k - indices.shape[1])), constant_values=-1)


def _misfits(
    features: np.ndarray,
    indices: np.ndarray,
    labels: np.ndarray,
    similarity_threshold: np.ndarray,
    edge_threshold: np.ndarray,
    centroid_threshold: np.ndarray,
    centroid_edge_similarity: np.ndarray,
    trained: np.ndarray,
) -> list[str]:
    """Names of the values of a saved clustering that cannot be: the others are judged by the features before them."""
    if features.ndim != 2 or features.dtype != np.float32 or not features.size:
        return ["features"]
    num_faces = len(features)
    unit = np.abs(np.linalg.norm(features, axis=1) - 1) < 1e-3
    graph = indices.ndim == 2 and indices.dtype == np.int32 and len(indices) == num_faces and indices.size > 0
    lowest = 0 if trained.ndim == 0 and trained else -1
    fits = {
        "features": unit.all(),
        "indices": graph and indices.min() >= lowest and indices.max() < num_faces,
        "labels": labels.shape == (num_faces,)
        and labels.dtype == np.int64
        and np.array_equal(np.union1d(labels, -1), np.arange(-1, labels.max() + 1)),
        "thresholds": all(
            threshold.ndim == 0 and threshold.dtype.kind == "f" and not np.isnan(threshold)
            for threshold in (similarity_threshold, edge_threshold, centroid_threshold, centroid_edge_similarity)
        )
        and np.isfinite([similarity_threshold, edge_threshold]).all(),
        "networks": trained.ndim == 0 and trained.dtype == bool,
    }
    return [name for name, fit in fits.items() if not fit]
