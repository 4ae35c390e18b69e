"""Which files make up a part, for each data set that `dataset=` can name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from lcde.data.formats import (
    read_features,
    read_image_list,
    read_labels,
    read_matrix,
    require_feature_size,
    require_file,
    require_label_each,
    require_npy_shape,
)
from lcde.data.knn import GraphFiles, build_knn, knn_graph, require_k, stored_graph
from lcde.data.part import Part
from lcde.errors import InputError


class Dataset(Protocol):
    """What the data module and eval.py ask of a data set."""

    k: int
    feature_dim: int

    def has_train(self) -> bool:
        """Whether the training part is there."""

    def load(self, train: bool) -> tuple[Part | None, Sequence[Part]]:
        """The training part, None unless ``train``, and the evaluation parts, labelled if ``train``.

        Raises `InputError` for anything missing or misfitting before the first kNN graph is built.
        """


class PartsInTurn(Sequence[Part]):
    """Parts that are read when they are asked for; the one read last is kept until another is wanted."""

    def __init__(self, names: Sequence[str], read: Callable[[str], Part]) -> None:
        self.names, self._read = names, read
        self._last: Part | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> Part:
        name = self.names[position]
        if self._last is None or self._last.name != name:
            self._last = None  # before reading: there may be no room for two
            self._last = self._read(name)
        return self._last


@dataclass
class FileDataset(ABC):
    """Parts kept in files: what all layouts share; each says where its files are and how features are stored.

    root:         folder of the data set
    k:            neighbours, the face itself counted
    feature_dim:  width of the embeddings
    train_part:   name of the part to train on, None where the data set has none
    parts:        what names the evaluation parts
    graph_k:      K of the kNN graph that is built where none is stored, where that is more than ``k``
    """

    root: str
    k: int
    feature_dim: int
    train_part: str | None
    parts: Sequence[int | str]
    graph_k: int | None = None

    def has_train(self) -> bool:
        return self.train_part is not None and self._features(self.train_part).is_file()

    def load(self, train: bool) -> tuple[Part | None, PartsInTurn]:
        if train and self.train_part is None:
            raise InputError(f"{type(self).__name__} has no training part; train on another dataset=….")
        names = [self.train_part] if train else []
        names += [self._name(part) for part in self.parts]
        labels = {name: self._checked_labels(name) for name in names}  # cheap checks of all parts come first
        building: dict[str, float] = {}  # a graph that is built at the first reading is a file at the second

        def read(name: str) -> Part:
            features = self._read_features(name, len(labels[name]))
            indices, similarities, seconds = knn_graph(features, self.k, self._graph(name), name, self.graph_k)
            return Part(name, features, indices, similarities, labels[name], building.setdefault(name, seconds))

        parts = PartsInTurn(names, read)
        if len(names) == 1:
            parts[0]  # it can stay in memory
        else:  # a second reading costs little beside what comes after it
            for name in names:
                stored_graph(self._read_features(name, len(labels[name])), self.k, self._graph(name))
        return (parts[0], PartsInTurn(names[1:], read)) if train else (None, parts)

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
        return read_matrix(self._features(name), self.feature_dim)


@dataclass
class Custom:
    """Embeddings of one's own: ``features`` (.npy, .npz, .pt, .bin), optionally with ``labels`` (.npy, or one a line).

    To train, name ``train_features`` and ``train_labels``; to validate on, ``val_features`` and ``val_labels``, or
    ``features`` and ``labels``; without either, ``val_share`` of the training identities are held out.
    ``feature_dim`` may be None but for .bin files, which do not tell it. Graphs are kept in ``<features>_knns/``.
    To cluster, ``k`` may exceed the faces: all of them are neighbours then.
    ``images`` lists the image file of each of ``features``, one a line, for the report. ``graph_k`` is as above.
    """

    k: int
    feature_dim: int | None
    features: str | None
    labels: str | None
    train_features: str | None
    train_labels: str | None
    val_features: str | None
    val_labels: str | None
    val_share: float
    images: str | None
    graph_k: int | None = None

    def __post_init__(self) -> None:
        self._read_already: dict[Path, np.ndarray] = {}
        first = self.features or self.train_features
        if self.feature_dim is None and first is not None:
            path = require_file(Path(first), "features")
            self._read_already[path] = read_matrix(path, None)
            self.feature_dim = self._read_already[path].shape[1]

    def has_train(self) -> bool:
        return self.train_features is not None

    def load(self, train: bool) -> tuple[Part | None, list[Part]]:
        if not train or self.features is not None:
            evaluation = [self._read("", self.features, self.labels, need_labels=train)]
        elif self.val_features is not None:
            evaluation = [self._read("val_", self.val_features, self.val_labels, need_labels=True)]
        else:
            evaluation = []
        if not train:
            path, features, labels = evaluation[0]
            if self.k < len(features):
                part = self._part("custom", path, features, labels)
            else:  # all are neighbours; networks, whose K is fixed, are refused by eval.py
                part = Part("custom", features, *build_knn(features, len(features)), labels)
            if self.images is not None:
                part = replace(part, images=read_image_list(self.images, len(part)))
            return None, [part]
        path, features, labels = self._read("train_", self.train_features, self.train_labels, need_labels=True)
        if evaluation:
            return self._part("train", path, features, labels), [self._part("val", *evaluation[0])]
        held_out = held_out_faces(labels, self.val_share)
        train_part, val_part = (
            self._part(name, path, features[rows], np.unique(labels[rows], return_inverse=True)[1])
            for name, rows in (("train", ~held_out), ("val", held_out))
        )
        return train_part, [val_part]

    def faces(self) -> tuple[np.ndarray, np.ndarray | None]:
        """``features`` (N, D) and, if given, ``labels`` (N,), without a kNN graph."""
        return self._read("", self.features, self.labels, need_labels=False)[1:]

    def _part(self, name: str, path: Path, features: np.ndarray, labels: np.ndarray | None) -> Part:
        require_k(self.k, len(features), f"{path} ({name})")
        files = GraphFiles(path.with_name(f"{path.stem}_knns") / name, "faiss_k_{k}.npz", "data")
        indices, similarities, seconds = knn_graph(features, self.k, files, str(path), self.graph_k)
        return Part(name, features, indices, similarities, labels, seconds)

    def _read(
        self, prefix: str, features_file: str | None, labels_file: str | None, need_labels: bool
    ) -> tuple[Path, np.ndarray, np.ndarray | None]:
        for kind, value in (("features", features_file), ("labels", labels_file)):
            if value is None and (kind == "features" or need_labels):
                raise InputError(f"dataset.{prefix}{kind} is not given; name the file that holds them.")
        path = require_file(Path(features_file), "features")
        labels = None if labels_file is None else read_labels(require_file(Path(labels_file), "labels"))
        features = self._read_already.pop(path, None)
        if features is None:
            features = read_matrix(path, self.feature_dim)
        if labels is not None:
            require_label_each(features, path, labels, labels_file)
        return path, features, labels


def held_out_faces(labels: np.ndarray, share: float) -> np.ndarray:
    """Faces (N,) bool of a random ``share`` of the identities ``labels`` (N,), the same ones every time."""
    identities = np.unique(labels)
    chosen = np.random.default_rng(0).permutation(identities)[: max(1, round(share * len(identities)))]
    return np.isin(labels, chosen)
