"""Which files make up a part, for each data set that `dataset=` can name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from lcde.data.formats import read_features, read_labels, require_feature_size, require_file
from lcde.data.knn import knn_graph, require_k
from lcde.data.part import Part


class Dataset(Protocol):
    """What the data module and eval.py ask of a data set."""

    k: int
    feature_dim: int

    def has_train(self) -> bool:
        """Whether the training part is there."""

    def load(self, train: bool) -> tuple[Part | None, list[Part]]:
        """The training part, None unless ``train``, and the evaluation parts.

        Raises `InputError` for anything missing or misfitting before the first kNN graph is built.
        """


@dataclass
class MS1M:
    """The MS1M layout: ``features/<part>.bin``, ``labels/<part>.meta``, ``knns/<part>/faiss_k_<K>.npz`` under ``root``.

    ``parts`` holds the numbers of the evaluation parts (1 means "part1_test") or whole part names.
    """

    root: str
    k: int
    feature_dim: int
    train_part: str
    parts: Sequence[int | str]

    def has_train(self) -> bool:
        return self._features(self.train_part).is_file() and self._labels(self.train_part).is_file()

    def load(self, train: bool) -> tuple[Part | None, list[Part]]:
        names = [self.train_part] if train else []
        names += [f"part{part}_test" if isinstance(part, int) else part for part in self.parts]
        labels = {name: self._read_labels(name) for name in names}  # cheap checks of all parts come first
        features = {name: read_features(self._features(name), len(labels[name]), self.feature_dim) for name in names}
        parts = []
        for name in names:
            folder = Path(self.root) / "knns" / name
            indices, similarities, seconds = knn_graph(features[name], self.k, folder, name)
            parts.append(Part(name, features[name], indices, similarities, labels[name], seconds))
        return (parts[0], parts[1:]) if train else (None, parts)

    def _features(self, name: str) -> Path:
        return Path(self.root) / "features" / f"{name}.bin"

    def _labels(self, name: str) -> Path:
        return Path(self.root) / "labels" / f"{name}.meta"

    def _read_labels(self, name: str) -> np.ndarray:
        """Identities (N,) int64 of a part whose features file has the size and K that they ask for."""
        features = require_file(self._features(name), "features")
        labels = read_labels(require_file(self._labels(name), "labels"))
        require_feature_size(features, len(labels), self.feature_dim)
        require_k(self.k, len(labels), name)
        return labels
