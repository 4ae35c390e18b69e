"""A clustering kept for later faces: its file, and their assignment to it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lcde.clustering.components import label_noise
from lcde.data.gallery import Gallery, KNNGraph
from lcde.data.knn import extended
from lcde.errors import InputError
from lcde.files import read_array, readable, write_atomically
from lcde.methods.lcde import LCDERule
from lcde.methods.method import Clustering, Rule, ScoringModel
from lcde.methods.second_pass import SecondPass
from lcde.methods.universal import UniversalRule
from lcde.methods.unsupervised import UnsupervisedRule

RULES = LCDERule, UnsupervisedRule, UniversalRule  # that can assign new faces
TYPES = {kind.__name__: kind for kind in (*RULES, SecondPass)}
ARRAYS = "features", "indices", "similarities", "labels", "k", "rule"  # of the file

TRAINED = "trained networks made the clustering; give them with checkpoint=… or lce_weights=… and pce_weights=…."
UNTRAINED = "the clustering was made without trained networks; new faces are assigned without any, too."


def require_assigning(rule: Rule) -> LCDERule | UnsupervisedRule:
    """Return ``rule``; raise `InputError` if it cannot assign new faces."""
    if not isinstance(rule, RULES):
        raise InputError(f"{type(rule).__name__} cannot assign new faces; keep a clustering of lcde or unsupervised.")
    return rule


@dataclass(frozen=True)
class SavedClustering:
    """Clustered faces, as the assignment of later ones needs them.

    Attributes
    ----------
    features : (N, D) float32
        Unit length.
    graph : KNNGraph
        Of ``k`` neighbours, or of all N faces where they are fewer.
    labels : (N,) int64
        Numbered from 0, -1 for noise.
    k : int
        Neighbours, the face itself counted.
    rule : LCDERule or UnsupervisedRule
        The rule that made the clustering; thresholds it computes are computed anew as the gallery grows.
    """

    features: np.ndarray
    graph: KNNGraph
    labels: np.ndarray
    k: int
    rule: LCDERule | UnsupervisedRule

    @classmethod
    def of(cls, gallery: Gallery, clustering: Clustering, k: int, rule: Rule) -> "SavedClustering":
        """Keep the ``clustering`` of ``gallery`` by ``rule``; raises `InputError` if it cannot assign new faces."""
        labels = clustering.labels if clustering.noise is None else label_noise(clustering.labels, clustering.noise)
        return cls(gallery.features, gallery.graph, labels, k, require_assigning(rule))

    @classmethod
    def load(cls, path: str | Path) -> "SavedClustering":
        """Read what `save` wrote; raises `InputError` where the file is missing or anything in it does not fit."""
        what = "a clustering that this version of lcde kept with save_to=…"
        with readable(Path(path), what, "; cluster the faces again"), np.load(path) as archive:
            features, indices, similarities, labels, k, rule = (read_array(archive.zip, name) for name in ARRAYS)
            built = json.loads(str(rule), object_hook=_built)
            saved = cls(features, KNNGraph(indices, similarities), labels, int(k), built)
            if misfits := saved._misfits():
                raise ValueError(f"its {' and '.join(misfits)} do not fit")
        return saved

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` file, for `load`."""
        arrays = {"features": self.features, "labels": self.labels, "k": self.k, **vars(self.graph)}
        rule = json.dumps(self.rule, default=_plain)
        write_atomically(Path(path), lambda file: np.savez(file, rule=rule, **arrays))

    def assign(self, features: np.ndarray, model: ScoringModel | None) -> "SavedClustering":
        """This clustering with new faces of unit ``features`` (n, D) float32 after the known ones, which all stay.

        Raises `InputError` where D differs, and unless there is a ``model`` exactly if the rule asks one.
        """
        new, known = features.shape[1], self.features.shape[1]
        if new != known:
            raise InputError(f"the new faces have a width of {new}, those of the clustering of {known}.")
        if self.rule.needs_scores != (model is not None):
            raise InputError(TRAINED if self.rule.needs_scores else UNTRAINED)
        gallery = extended(Gallery("assigned", self.features, self.graph), features, self.k)
        scores = None if model is None else model.bind(gallery, self.rule.precision, False, None)
        labels = self.rule.assign(gallery, self.labels, scores)
        return replace(self, features=gallery.features, graph=gallery.graph, labels=labels)

    def _misfits(self) -> list[str]:
        """Names of the values that cannot be right."""
        features, indices, similarities, labels = self.features, *vars(self.graph).values(), self.labels
        num_faces, unit = len(features), np.abs(np.linalg.norm(features, axis=-1) - 1) < 1e-3
        shape = num_faces, min(self.k, num_faces)
        fits = {
            "settings": self.k >= 2 and isinstance(self.rule, RULES),
            "features": features.ndim == 2 and features.dtype == np.float32 and unit.all(),
            "indices": _is(indices, shape, np.int32) and indices.min() >= 0 and indices.max() < num_faces,
            "similarities": _is(similarities, shape, np.float32) and np.abs(similarities).max() < 1 + 1e-3,
            "labels": _is(labels, shape[:1], np.int64)
            and np.array_equal(np.union1d(labels, -1), np.arange(-1, labels.max() + 1)),
        }
        return [name for name, fit in fits.items() if not fit]


def _is(array: np.ndarray, shape: tuple[int, ...], dtype: type) -> bool:
    return array.shape == shape and array.dtype == dtype


def _plain(value: object) -> object:
    """What JSON cannot write, as plain types: rules and second passes by the name of their class, NumPy numbers."""
    return value.item() if isinstance(value, np.generic) else {"_target_": type(value).__name__, **vars(value)}


def _built(value: dict) -> object:
    """The inverse of `_plain`; only the classes in `TYPES` are built."""
    return TYPES[value.pop("_target_")](**value) if "_target_" in value else value
