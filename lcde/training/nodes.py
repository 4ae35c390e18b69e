"""The data module of the universal model: clusters of random galleries, made as fast as training takes them."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lcde.clustering.nodes import NodeGraph, describe, noise_correction, pool
from lcde.data.datasets import Custom
from lcde.data.gallery import Gallery
from lcde.data.knn import build_knn
from lcde.data.random_galleries import TRAIN, VALIDATION, RandomGalleries, log_uniform
from lcde.data.resampled import ResampledGalleries
from lcde.distributed import rank
from lcde.errors import InputError
from lcde.methods.universal import merge_pairs
from lcde.methods.unsupervised import UnsupervisedRule
from lcde.models.universal import NodeBatch, UniversalModel
from lcde.settings import Within, check_settings

GRAPH_K, LIKENESS_K = 40, 12  # neighbours of faces, and of clusters that merge by likeness
AT_ONCE = 4  # galleries that a batch mixes
AHEAD = 16  # batches made before they are needed: those of a large gallery take longer
FRESH = 3  # batches that are made of the galleries at hand before one of them is replaced

Draw = Callable[[int], tuple[np.ndarray, np.ndarray]]  # features and identities of the gallery of a number
Batch = tuple[Tensor, NodeBatch, Tensor]  # same identity (B, K), neighbourhoods, sizes (B, K)


class Example(NamedTuple):
    """Clusters of one gallery, and the identity (C,) of most faces of each."""

    nodes: NodeGraph
    identities: np.ndarray


class NodeDataModule(LightningDataModule):
    """Serves neighbourhoods of clusters from an endless stream of random galleries.

    Parameters
    ----------
    dataset : RandomGalleries
    nodes_per_step : int
        Clusters of a batch, from four galleries.
    galleries : int
        Galleries that are held at a time.
    validation_galleries : int
        Galleries of the loss ``val/merge_loss``.
    seed : int
    real : sequence of mappings
        Labelled galleries that are resampled (`ResampledGalleries`): ``features``, ``labels`` and, for ``.bin`` files,
        ``feature_dim``, as of `Custom`.
    real_share : float
        Share of the galleries that are resampled ones, if there are any.
    """

    nodes_per_step: Annotated[int, Within(1)]
    galleries: Annotated[int, Within(1)]
    validation_galleries: Annotated[int, Within(1)]
    seed: Annotated[int, Within(0)]
    real_share: Annotated[float, Within(0, 1)]

    model_class = UniversalModel  # that takes its batches

    def __init__(
        self,
        dataset: RandomGalleries,
        nodes_per_step: int,
        galleries: int,
        validation_galleries: int,
        seed: int,
        real: Sequence[Mapping[str, Any]],
        real_share: float,
    ) -> None:
        super().__init__()
        self.nodes_per_step, self.galleries, self.validation_galleries = nodes_per_step, galleries, validation_galleries
        self.seed, self.real_share = seed, real_share
        check_settings(self, "data.")
        if not isinstance(dataset, RandomGalleries):
            raise InputError("this model learns from random galleries; add dataset=random_galleries.")
        self.dataset = dataset
        self.resampled = ResampledGalleries([_labelled(files) for files in real], dataset.seed) if real else None
        self.parts = dataset.load(train=False)
        self._validation: list[Batch] | None = None

    def draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Features and identities of the training gallery of that ``number``, random or resampled."""
        if self.resampled is None or np.random.default_rng([self.seed, number, 3]).random() >= self.real_share:
            return self.dataset.draw(TRAIN + number)
        return self.resampled.draw(number)

    def train_dataloader(self) -> DataLoader:
        """The stream of this epoch, made by a process of its own."""
        assert self.trainer is not None
        stream = NodeStream(self, self._candidates(), self.trainer.current_epoch)
        return DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=AHEAD)

    def val_dataloader(self) -> DataLoader:
        """One batch of each validation gallery, random ones alone, the same at each epoch."""
        if self._validation is None:
            candidates, rng = self._candidates(), np.random.default_rng(self.seed)
            numbers = (VALIDATION + number for number in range(10 * self.validation_galleries))
            examples = (make_example(self.dataset.draw, number, self.seed, candidates) for number in numbers)
            found = (example for example in examples if example is not None)
            some = (next(found) for _ in range(self.validation_galleries))
            self._validation = [make_batch([example], self.nodes_per_step, candidates, rng) for example in some]
        return DataLoader(self._validation, batch_size=None)  # type: ignore[arg-type]  # a sequence does

    def _candidates(self) -> int:
        assert self.trainer is not None and isinstance(self.trainer.lightning_module, UniversalModel)
        return self.trainer.lightning_module.candidates


def _labelled(files: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    features, labels = Custom(k=1, **files).faces()
    if labels is None:
        raise InputError(f"data.real: {files['features']} has no labels; name the file that holds them.")
    return features, labels


class NodeStream(IterableDataset):
    """Batches of one epoch; those of another epoch or process are others."""

    def __init__(self, data: NodeDataModule, candidates: int, epoch: int) -> None:
        self.draw, self.candidates = data.draw, candidates
        self.nodes_per_step, self.galleries = data.nodes_per_step, data.galleries
        self.place = [data.seed, rank(), epoch]

    def __iter__(self) -> Iterator[Batch]:
        rng = np.random.default_rng(self.place)
        at_hand: deque[Example] = deque(maxlen=self.galleries)
        while True:
            example = make_example(self.draw, int(rng.integers(2**40)), self.place[0], self.candidates)
            if example is None:
                continue
            at_hand.append(example)
            for first in [example, *(at_hand[i] for i in rng.integers(len(at_hand), size=FRESH - 1))]:
                others = [other for other in (at_hand[i] for i in rng.permutation(len(at_hand))) if other is not first]
                yield make_batch([first, *others[: AT_ONCE - 1]], self.nodes_per_step, self.candidates, rng)


def make_example(draw: Draw, number: int, seed: int, candidates: int) -> Example | None:
    """Clusters of a random gallery as they are at some time of a clustering; None where one is left.

    Parameters
    ----------
    draw : callable
        Features and identities of the gallery of a number.
    number, seed : int
        Of the gallery, and of what happens to its clusters.
    candidates : int
        Neighbours of the clusters.
    """
    rng = np.random.default_rng([seed, number, 1])
    features, labels_true = draw(number)
    gallery = Gallery("random", features, build_knn(features, min(GRAPH_K, len(features))))
    rule = UnsupervisedRule(log_uniform(rng, (1e-6, 3e-3)), num_trials=1, merging=bool(rng.random() < 0.6))
    labels = rule(gallery).labels
    features = rule.transformed(gallery, labels)
    kind = rng.random()
    if kind < 0.35:
        labels = partly_merged(labels, labels_true, rng)
    elif kind < 0.75:
        labels = merged_by_likeness(features, labels, rng)
    if labels.max() < 1:
        return None
    return Example(describe(features, labels, candidates), majority(labels, labels_true))


def merged_by_likeness(features: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels (N,) after some rounds of merging those most alike after correction for noise, above some threshold.

    The mistakes are those of a clustering that merges too much: look-alikes.
    """
    threshold = rng.uniform(0.5, 1.05)
    for _ in range(rng.integers(1, 9)):
        nodes = pool(features, labels)
        graph = build_knn(nodes.directions, min(LIKENESS_K, len(nodes.sizes)))
        correction = noise_correction(nodes)[1]
        likeness = graph.similarities * correction[:, None] * correction[graph.indices]
        likeness[:, 0] = 0
        merged = merge_pairs(graph.indices, likeness, threshold)
        labels = merged[labels]
        if merged.max() + 1 in (len(merged), 1):
            break
    return labels


def majority(labels: np.ndarray, labels_true: np.ndarray) -> np.ndarray:
    """The identity (C,) of most faces of each cluster."""
    count = np.zeros((labels.max() + 1, labels_true.max() + 1), dtype=np.int32)
    np.add.at(count, (labels, labels_true), 1)
    return count.argmax(axis=1)


def partly_merged(labels: np.ndarray, labels_true: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels (N,) after some merges at random: nearly all of clusters of one identity, a few wrong ones."""
    identities, merged = majority(labels, labels_true), np.arange(labels.max() + 1)
    chosen = np.flatnonzero(rng.random(len(merged)) < rng.random())
    group = np.minimum(rng.geometric(rng.uniform(0.3, 0.95), len(chosen)) - 1, 6)  # an identity falls into some groups
    _, first, of_group = np.unique(7 * identities[chosen] + group, return_index=True, return_inverse=True)
    merged[chosen] = chosen[first][of_group]
    wrong = rng.random(len(merged)) < rng.uniform(0, 0.01)
    merged[wrong] = merged[rng.integers(len(merged), size=wrong.sum())]
    return np.unique(merged, return_inverse=True)[1][labels]


def make_batch(examples: list[Example], num_nodes: int, candidates: int, rng: np.random.Generator) -> Batch:
    """Random nodes of ``examples``, about ``num_nodes`` in all, with ``candidates`` neighbours."""
    parts, same, sizes = [], [], []
    for number, (described, identities) in enumerate(examples):
        rows = rng.permutation(len(identities))[: max(2, num_nodes // len(examples))]
        batch, neighbours = NodeBatch.of(described, rows, candidates), described.graph.indices[rows]
        room = ((0, 0), (0, candidates - described.graph.k))
        parts.append(batch._replace(number=batch.number + number))
        same.append(np.pad(identities[neighbours] == identities[rows, None], room))
        sizes.append(np.pad(described.nodes.sizes[neighbours], room))
    width = max(batch.directions.shape[2] for batch in parts)
    parts = [
        batch._replace(directions=F.pad(batch.directions, (0, width - batch.directions.shape[2]))) for batch in parts
    ]
    targets = torch.from_numpy(np.concatenate(same).astype(np.float32))
    nodes = NodeBatch._make(map(torch.cat, zip(*parts, strict=True)))
    return targets, nodes, torch.from_numpy(np.concatenate(sizes))
