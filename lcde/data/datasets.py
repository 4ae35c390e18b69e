"""Which files make up a part, for each data set that `dataset=` can name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from lcde.data.formats import (
    read_features,
    read_labels,
    read_npy_features,
    require_feature_size,
    require_file,
    require_npy_shape,
)
from lcde.data.knn import GraphFiles, knn_graph, require_k
from lcde.data.part import Part
from lcde.errors import InputError


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
class FileDataset(ABC):
    """Parts kept in files: what all layouts share; each says where its files are and how features are stored.

    root:         folder of the data set
    k:            neighbours, the face itself counted
    feature_dim:  width of the embeddings
    train_part:   name of the part to train on, None where the data set has none
    parts:        what names the evaluation parts
    """

    root: str
    k: int
    feature_dim: int
    train_part: str | None
    parts: Sequence[int | str]

    def has_train(self) -> bool:
        return self.train_part is not None and self._features(self.train_part).is_file()

    def load(self, train: bool) -> tuple[Part | None, list[Part]]:
        if train and self.train_part is None:
            raise InputError(f"{type(self).__name__} has no training part; train on another dataset=….")
        names = [self.train_part] if train else []
        names += [self._name(part) for part in self.parts]
        labels = {name: self._checked_labels(name) for name in names}  # cheap checks of all parts come first
        features = {name: self._read_features(name, len(labels[name])) for name in names}
        parts = []
        for name in names:
            indices, similarities, seconds = knn_graph(features[name], self.k, self._graph(name), name)
            parts.append(Part(name, features[name], indices, similarities, labels[name], seconds))
        return (parts[0], parts[1:]) if train else (None, parts)

    def _name(self, part: int | str) -> str:
        return str(part)

    @abstractmethod
    def _features(self, name: str) -> Path: ...

    @abstractmethod
    def _labels(self, name: str) -> Path: ...

    @abstractmethod
    def _graph(self, name: str) -> GraphFiles: ...

    def _require_size(self, name: str, num_faces: int) -> None:
        require_feature_size(self._features(name), num_faces, self.feature_dim)

    def _read_features(self, name: str, num_faces: int) -> np.ndarray:
        return read_features(self._features(name), num_faces, self.feature_dim)

    def _checked_labels(self, name: str) -> np.ndarray:
        """Identities (N,) int64 of a part whose features file has the size and K that they ask for."""
        require_file(self._features(name), "features")
        labels = read_labels(require_file(self._labels(name), "labels"))
        self._require_size(name, len(labels))
        require_k(self.k, len(labels), name)
        return labels


class MS1M(FileDataset):
    """``features/<part>.bin``, ``labels/<part>.meta`` and ``knns/<part>/faiss_k_<K>.npz`` under ``root``.

    ``parts`` holds numbers (1 means "part1_test") or whole part names.
    """

    def _name(self, part: int | str) -> str:
        return f"part{part}_test" if isinstance(part, int) else part

    def _features(self, name: str) -> Path:
        return Path(self.root) / "features" / f"{name}.bin"

    def _labels(self, name: str) -> Path:
        return Path(self.root) / "labels" / f"{name}.meta"

    def _graph(self, name: str) -> GraphFiles:
        return GraphFiles(Path(self.root) / "knns" / name, "faiss_k_{k}.npz", "data")


class DeepFashion(MS1M):
    """As MS1M, with ``knns/<part>/deepfashion_k<K>.npz`` of ``knns`` and ``dists``; ``parts`` holds part names."""

    def _graph(self, name: str) -> GraphFiles:
        return GraphFiles(Path(self.root) / "knns" / name, "deepfashion_k{k}.npz", "knns")


class IJBB(FileDataset):
    """``<part>.fea.npy``, ``<part>.labels.npy`` and ``knn.graph.<part>.bf.npy`` (indices alone) under ``root``.

    ``parts`` holds the numbers of identities that name the subsets: 512, 1024, 1845.
    """

    def _features(self, name: str) -> Path:
        return Path(self.root) / f"{name}.fea.npy"

    def _labels(self, name: str) -> Path:
        return Path(self.root) / f"{name}.labels.npy"

    def _graph(self, name: str) -> GraphFiles:
        return GraphFiles(Path(self.root), f"knn.graph.{name}.bf.npy", "npy")

    def _require_size(self, name: str, num_faces: int) -> None:
        require_npy_shape(self._features(name), num_faces, self.feature_dim)

    def _read_features(self, name: str, num_faces: int) -> np.ndarray:
        return read_npy_features(self._features(name))


@dataclass
class Custom:
    """Embeddings of one's own: ``features`` (.npy), optionally with ``labels`` (.npy, or one integer a line).

    To train, name ``train_features`` and ``train_labels``, and ``val_features`` and ``val_labels``, which then take the
    place of ``features`` and ``labels``. Graphs are kept beside the features, in ``<features>_knns/``.
    """

    k: int
    feature_dim: int
    features: str | None
    labels: str | None
    train_features: str | None
    train_labels: str | None
    val_features: str | None
    val_labels: str | None

    def has_train(self) -> bool:
        return self.train_features is not None

    def load(self, train: bool) -> tuple[Part | None, list[Part]]:
        sources = [("train", self.train_features, self.train_labels)] if train else []
        sources += [("val", self.val_features, self.val_labels)] if train else [("custom", self.features, self.labels)]
        read = [(name, *self._read(name, features, labels, train)) for name, features, labels in sources]
        parts = []
        for name, path, features, labels in read:
            files = GraphFiles(path.with_name(f"{path.stem}_knns"), "faiss_k_{k}.npz", "data")
            indices, similarities, seconds = knn_graph(features, self.k, files, str(path))
            parts.append(Part(name, features, indices, similarities, labels, seconds))
        return (parts[0], parts[1:]) if train else (None, parts)

    def _read(
        self, name: str, features_file: str | None, labels_file: str | None, labels_needed: bool
    ) -> tuple[Path, np.ndarray, np.ndarray | None]:
        prefix = "" if name == "custom" else f"{name}_"
        for kind, value in (("features", features_file), ("labels", labels_file)):
            if value is None and (kind == "features" or labels_needed):
                raise InputError(f"dataset.{prefix}{kind} is not given; name the file that holds them.")
        path = require_file(Path(features_file), "features")
        labels = None if labels_file is None else read_labels(require_file(Path(labels_file), "labels"))
        features = read_npy_features(path)
        require_npy_shape(path, len(features) if labels is None else len(labels), self.feature_dim)
        require_k(self.k, len(features), str(path))
        return path, features, labels
