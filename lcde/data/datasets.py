"""The files that make up each data set that `dataset=` can name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, ClassVar, Protocol

import numpy as np

from lcde.data.formats import map_features, read_image_list, read_knn, read_labels, read_matrix, stays_mapped
from lcde.data.gallery import Gallery, KNNGraph, require_part_name
from lcde.data.knn import CORRECT, GraphFiles, build_knn, knn_graph, own_graph, require_k, stored_graph, with_reference
from lcde.errors import InputError
from lcde.files import require_file
from lcde.resources import require_memory
from lcde.settings import Within, check_settings

NEEDED = {  # by a key of `Custom`: the key without which it would be ignored
    **dict.fromkeys(("labels", "graph", "images", "reference"), "features"),
    "train_features": "train_labels",
    "train_labels": "train_features",
    "val_features": "val_labels",
    "val_labels": "val_features",
}
SAMPLED = 1_000  # of every so many rows one is checked, to tell beforehand whether features will stay in their file


@dataclass(frozen=True)
class Parts:
    """The galleries of a data set.

    Attributes
    ----------
    train : Gallery, optional
        The training part without its held-out identities; None where it was not asked for.
    validation : Gallery, optional
        Held-out identities; None where the data set has no labelled training part.
    evaluation : sequence of Gallery
        Evaluation parts; where there are several, those of `FileDataset` are read each time that they are asked for.
    """

    train: Gallery | None
    validation: Gallery | None
    evaluation: Sequence[Gallery]

    def scored(self) -> Iterator[Gallery]:
        """Held-out identities, if there are any, then the evaluation parts, each read when it is asked for."""
        return chain([] if self.validation is None else [self.validation], self.evaluation)


class Dataset(Protocol):
    """What training and evaluation ask of a data set.

    Attributes
    ----------
    k : int
        Neighbours, the face itself counted.
    feature_dim : int
        D.
    """

    k: int
    feature_dim: int

    def load(self, train: bool) -> Parts:
        """Read the galleries and their kNN graphs; missing graphs are built.

        Parameters
        ----------
        train : bool
            Whether the training part is needed; evaluation parts must then have labels.

        Raises
        ------
        InputError
            For anything that is missing or does not fit, before the first graph is built.
        """


@dataclass(frozen=True)
class _Source:
    """A gallery before its features and graph are read; its labels and the size of its features have been checked.

    ``read`` takes the faces to read, (N,) bool, all by default; ``files`` tells where the graph of a name is stored;
    ``mapped`` tells whether the features of all faces stay in their file.
    """

    name: str
    labels: np.ndarray | None
    num_faces: int
    read: Callable[..., np.ndarray]
    files: Callable[[str], GraphFiles]
    graph_name: str
    mapped: bool = False
    held_out: bool = False
    graph: KNNGraph | None = None  # used instead of one in ``files``
    images: Sequence[Path] | None = None

    def split(self, share: float) -> tuple["_Source", "_Source"]:
        """The gallery without its held-out identities, and these."""
        assert self.labels is not None
        held_out = held_out_faces(self.labels, share, self.name)
        fit, validation = self._chosen(~held_out, f"fit_{share:g}"), self._chosen(held_out, f"held_out_{share:g}")
        return fit, replace(validation, name=f"{self.name}_held_out", held_out=True)

    def _chosen(self, rows: np.ndarray, side: str) -> "_Source":
        """The gallery of the faces in ``rows`` (N,) bool alone."""
        labels = np.unique(np.asarray(self.labels)[rows], return_inverse=True)[1]
        read, graph_name = partial(self.read, rows), f"{self.name}_{side}"
        return replace(self, labels=labels, num_faces=len(labels), read=read, graph_name=graph_name, mapped=False)


class GalleriesInTurn(Sequence[Gallery]):
    """Galleries that are read each time that they are asked for: there may be memory for only one."""

    def __init__(self, read: Sequence[Callable[[], Gallery]]) -> None:
        self._read = read
        self._seconds: dict[int, float] = {}  # a graph that is built at the first reading is stored at the second

    def __len__(self) -> int:
        return len(self._read)

    def __getitem__(self, position: int) -> Gallery:  # type: ignore[override]
        gallery = self._read[position]()
        return replace(gallery, knn_seconds=self._seconds.setdefault(position, gallery.knn_seconds))


class _StoredGraphs:
    """Base class of data sets whose graphs are kept in files."""

    k: int
    val_share: float
    graph_k: int | None

    def _parts(self, train: bool, fit: _Source | None, held_out: _Source | None, evaluation: list[_Source]) -> Parts:
        """Check everything, then build the missing graphs; without ``held_out``, identities of ``fit`` are held out."""
        if fit is not None and held_out is None:
            fit, held_out = fit.split(self.val_share)
        fit = fit if train else None
        needed = [source for source in (fit, held_out, *evaluation) if source is not None]
        for source in needed:
            if train or source.graph is None or self.k < source.num_faces:
                suffix = " (held-out identities)" if source.held_out else ""
                require_k(self.k, source.num_faces, f"{source.name}{suffix}")
        for source in needed if len(needed) > 1 else ():  # reading twice takes little time compared with clustering
            if source.graph is None:
                stored_graph(source.read(), self.k, source.files(source.graph_name))
        first, validation = (None if source is None else self._gallery(source) for source in (fit, held_out))
        galleries = GalleriesInTurn([partial(self._gallery, source) for source in evaluation])
        return Parts(first, validation, list(galleries) if len(evaluation) == 1 else galleries)

    def _gallery(self, source: _Source) -> Gallery:
        features, graph, seconds = source.read(), source.graph, 0.0
        if graph is None:
            files = source.files(source.graph_name)
            graph, seconds = knn_graph(features, self.k, files, source.name, self.graph_k)
        return Gallery(source.name, features, graph, source.labels, source.images, source.held_out, seconds)


@dataclass
class FileDataset(_StoredGraphs):
    """Base class of data sets with parts in files; subclasses say where the files are, ``{name}`` being the part's.

    Parameters
    ----------
    root : str
        Folder of the data set.
    k : int
        Neighbours, the face itself counted.
    feature_dim : int
        D.
    train_part : str, optional
        Name of the training part, None where there is none.
    parts : sequence of int or str
        Evaluation parts.
    val_share : float
        Share of the training part's identities that are held out, drawn with a fixed seed; between 0 and 1.
    graph_k : int, optional
        K of graphs that are built, where that is more than ``k``: they serve every smaller K.
    """

    features_file: ClassVar[str]
    labels_file: ClassVar[str]
    graph_file: ClassVar[str]
    graph_layout: ClassVar[str]
    numbered_part: ClassVar[str] = "{}"

    root: str
    k: Annotated[int, Within(1)]
    feature_dim: Annotated[int, Within(1)]
    train_part: str | None
    parts: Sequence[int | str]
    val_share: Annotated[float, Within(0, 1)] = 0.1
    graph_k: Annotated[int | None, Within(1)] = None

    def __post_init__(self) -> None:
        check_settings(self, "dataset.")
        if self.train_part is not None:
            require_part_name(self.train_part)
        self._names()  # checks them

    def has_train(self) -> bool:
        """Whether features and labels of the training part are there."""
        part, files = self.train_part, (self.features_file, self.labels_file)
        return part is not None and all(self._path(file, part).is_file() for file in files)

    def load(self, train: bool) -> Parts:
        """Read the galleries; see `Dataset`."""
        if train and self.train_part is None:
            raise InputError(f"{type(self).__name__} has no training part; train on another dataset=….")
        fit = self._source(str(self.train_part)) if train or self.has_train() else None
        evaluation = [self._source(name) for name in self._names()]
        for source in [fit, *evaluation] if train and fit is not None else evaluation:
            require_memory(source.name, (source.num_faces, self.feature_dim), self.k, source.mapped)
        return self._parts(train, fit, None, evaluation)

    def _names(self) -> list[str]:
        return part_names(self.parts, f"{self.train_part}_held_out", self.numbered_part)

    def _path(self, file: str, name: str) -> Path:
        return Path(self.root) / file.replace("{name}", name)

    def _graph(self, name: str) -> GraphFiles:
        path = self._path(self.graph_file, name)
        return GraphFiles(path.parent, path.name, self.graph_layout)

    def _source(self, name: str) -> _Source:
        path = require_file(self._path(self.features_file, name), "features")
        labels = read_labels(self._path(self.labels_file, name))
        mapped = stays_mapped(map_features(path, self.feature_dim, len(labels)), SAMPLED)
        read = partial(read_matrix, path, self.feature_dim, len(labels))
        return _Source(name, labels, len(labels), read, self._graph, name, mapped)


class MS1M(FileDataset):
    """``features/<part>.bin``, ``labels/<part>.meta`` and ``knns/<part>/faiss_k_<K>.npz`` under ``root``.

    ``parts`` holds numbers (1 means "part1_test") or whole part names. The graphs of the two sides of the training part
    are stored in ``knns/<part>_fit_<val_share>/`` and ``knns/<part>_held_out_<val_share>/``.
    """

    features_file, labels_file = "features/{name}.bin", "labels/{name}.meta"
    graph_file, graph_layout = "knns/{name}/faiss_k_{k}.npz", "data"
    numbered_part = "part{}_test"


class DeepFashion(MS1M):
    """As MS1M, with ``knns/<part>/deepfashion_k<K>.npz`` of ``knns`` and ``dists``; ``parts`` holds part names."""

    graph_file, graph_layout = "knns/{name}/deepfashion_k{k}.npz", "knns"


class IJBB(FileDataset):
    """``<part>.fea.npy``, ``<part>.labels.npy`` and ``knn.graph.<part>.bf.npy`` (indices alone) under ``root``.

    ``parts`` holds the numbers of identities that name the subsets: 512, 1024, 1845.
    """

    features_file, labels_file = "{name}.fea.npy", "{name}.labels.npy"
    graph_file, graph_layout = "knn.graph.{name}.bf.npy", "npy"


@dataclass
class Custom(_StoredGraphs):
    """Embeddings in files of one's own; `lcde.data.formats` says which are read.

    Graphs of ``faces.npy`` are stored in ``faces.npy_knns/`` beside it.

    Parameters
    ----------
    k : int
        Neighbours, the face itself counted; of fewer faces to cluster, all are neighbours.
    feature_dim : int, optional
        D; taken from the file by default, but ``.bin`` files need it.
    features, labels : str, optional
        Embeddings to cluster, and their identities, for scores.
    train_features, train_labels : str, optional
        Embeddings to train on.
    val_features, val_labels : str, optional
        Held-out identities to choose checkpoints and thresholds on.
    val_share : float
        Without ``val_features``, the share of the training identities that are held out, drawn with a fixed seed;
        between 0 and 1.
    images : str, optional
        Text file with the image file of each of ``features``, one a line, for the report.
    reference : str, optional
        Embeddings of other people, without labels, that are clustered together with ``features`` and left out of the
        results: what strangers look like, which an album of one person does not tell.
    graph : str, optional
        kNN graph of ``features`` (`lcde.data.formats.read_knn`), used instead of building one.
    graph_k : int, optional
        K of graphs that are built, where that is more than ``k``: they serve every smaller K.
    """

    k: Annotated[int, Within(1)]
    feature_dim: Annotated[int | None, Within(1)] = None
    features: str | None = None
    labels: str | None = None
    train_features: str | None = None
    train_labels: str | None = None
    val_features: str | None = None
    val_labels: str | None = None
    val_share: Annotated[float, Within(0, 1)] = 0.2
    images: str | None = None
    reference: str | None = None
    graph: str | None = None
    graph_k: Annotated[int | None, Within(1)] = None

    def __post_init__(self) -> None:
        check_settings(self, "dataset.")
        for key, other in NEEDED.items():
            if getattr(self, key) is not None and getattr(self, other) is None:
                raise InputError(f"dataset.{other} is not given, but dataset.{key} is; name both files.")
        others = "labels", "train_labels", "val_features", "val_labels", "graph", "images", "reference"
        for key in (*others, "features", "train_features"):
            if (file := getattr(self, key)) is not None:
                path = require_file(Path(file), f"dataset.{key}")
                if self.feature_dim is None and key not in others:
                    self.feature_dim = map_features(path, None).shape[1]

    def has_train(self) -> bool:
        """Whether ``train_features`` and ``train_labels`` are given."""
        return self.train_features is not None

    def load(self, train: bool) -> Parts:
        """Read the galleries; see `Dataset`."""
        fit = held_out = None
        if self.val_features is not None:
            held_out = replace(self._source("val_", "val"), held_out=True)
        if train or self.has_train():
            fit = self._source("train_", "train")
        evaluation = [self._evaluation_source(train)] if not train or self.features is not None else []
        reference = None if self.reference is None else read_matrix(Path(self.reference), self.feature_dim)
        parts = self._parts(train, fit, held_out, evaluation)
        if reference is None:
            return parts
        source = f"dataset.reference={self.reference}"
        return replace(parts, evaluation=[with_reference(part, reference, self.k, source) for part in parts.evaluation])

    def faces(self) -> tuple[np.ndarray, np.ndarray | None]:
        """``features`` (N, D) and, if given, ``labels`` (N,), without a kNN graph."""
        source = self._source("", "custom")
        return source.read(), source.labels

    def _source(self, prefix: str, name: str, need_labels: bool = False) -> _Source:
        """The embeddings, and the labels if given, that the keys with ``prefix`` name."""
        features_file, labels_file = getattr(self, f"{prefix}features"), getattr(self, f"{prefix}labels")
        for kind, value in (("features", features_file), ("labels", labels_file)):
            if value is None and (kind == "features" or need_labels):
                raise InputError(f"dataset.{prefix}{kind} is not given; name the file that holds them.")
        path = Path(features_file)
        values = map_features(path, self.feature_dim)
        require_memory(features_file, values.shape, self.k, stays_mapped(values, SAMPLED))
        features = read_matrix(path, self.feature_dim)
        labels = None if labels_file is None else read_labels(Path(labels_file), len(features))
        return _Source(name, labels, len(features), lambda rows=...: features[rows], partial(_beside, path), name)

    def _evaluation_source(self, train: bool) -> _Source:
        source = self._source("", "custom", need_labels=train)
        features, graph, images = source.read(), None, None
        if self.graph is not None:
            stored = read_knn(Path(self.graph), CORRECT)
            graph = own_graph(stored.indices, stored.similarities, features, self.k, self.graph)
        elif len(features) <= self.k:  # all are neighbours; trained models, whose K is fixed, need more faces
            graph = build_knn(features, len(features))
        if self.images is not None:
            images = read_image_list(Path(self.images), len(features))
        return replace(source, graph=graph, images=images)


def _beside(features_file: Path, name: str) -> GraphFiles:
    return GraphFiles(features_file.with_name(f"{features_file.name}_knns") / name, "faiss_k_{k}.npz", "arrays")


def part_names(parts: object, held_out: str, numbered: str = "{}") -> list[str]:
    """Names of the evaluation parts.

    Parameters
    ----------
    parts : sequence of int or str
        Value of ``dataset.parts``.
    held_out : str
        Name of the part of held-out identities.
    numbered : str
        Format of the names that numbers stand for.

    Raises
    ------
    InputError
        Unless ``parts`` is a list of names that differ from each other and from ``held_out``.
    """
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        raise InputError(f"dataset.parts={parts} must be a list, such as [{parts}].")
    names = [held_out, *(numbered.format(part) if isinstance(part, int) else part for part in parts)]
    for name in names:
        require_part_name(name)
        if names.count(name) > 1:
            raise InputError(f"dataset.parts names {name} twice; name each part once.")
    return names[1:]


def held_out_faces(labels: np.ndarray, share: float, source: str) -> np.ndarray:
    """Draw held-out identities at random, the same ones every time.

    Parameters
    ----------
    labels : (N,) int64
        Identities.
    share : float
        Share of the identities to draw, between 0 and 1; at least one is drawn and at least one is not.
    source : str
        What the labels are called in a message.

    Returns
    -------
    (N,) bool
        Whether a face is of a drawn identity.

    Raises
    ------
    InputError
        On another share, and where there is one identity only.
    """
    if not 0 < share < 1:
        raise InputError(f"dataset.val_share={share} must lie between 0 and 1: the share of identities to hold out.")
    identities = np.unique(labels)
    if len(identities) < 2:
        raise InputError(f"{source} has {len(identities)} identity; training needs two or more, to hold one out.")
    count = min(max(1, round(share * len(identities))), len(identities) - 1)
    return np.isin(labels, np.random.default_rng(0).permutation(identities)[:count])
