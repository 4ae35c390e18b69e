"""The data module of the universal model: clusters of random galleries, made as fast as training takes them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lcde.clustering.nodes import NodeGraph, describe
from lcde.data.gallery import Gallery
from lcde.data.knn import build_knn
from lcde.data.random_galleries import TRAIN, VALIDATION, RandomGalleries, log_uniform
from lcde.distributed import rank
from lcde.errors import InputError
from lcde.methods.universal import merge_pairs
from lcde.methods.unsupervised import UnsupervisedRule
from lcde.models.universal import ClusterScores, NodeBatch, UniversalModel

GRAPH_K = 40  # neighbours in the galleries; of the clusters, the model says how many it compares
AT_ONCE = 4  # galleries that a batch mixes
AHEAD = 16  # batches made before they are needed: those of a large gallery take longer
FRESH = 3  # batches that are made of the galleries at hand before one of them is replaced

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
        Clusters of a batch, from up to four galleries.
    galleries : int
        Galleries that are held at a time.
    validation_galleries : int
        Galleries of the loss ``val/merge_loss``.
    seed : int
    """

    model_class = UniversalModel  # that takes its batches

    def __init__(
        self, dataset: RandomGalleries, nodes_per_step: int, galleries: int, validation_galleries: int, seed: int
    ) -> None:
        super().__init__()
        if not isinstance(dataset, RandomGalleries):
            raise InputError("this model learns from random galleries; add dataset=random_galleries.")
        self.dataset, self.nodes_per_step, self.galleries, self.seed = dataset, nodes_per_step, galleries, seed
        self.parts = dataset.load(train=False)
        self.validation_galleries = validation_galleries
        self._validation: list[Batch] | None = None

    def train_dataloader(self) -> DataLoader:
        """The stream of this epoch, made by a process of its own with the present weights."""
        present = self._model()
        model = UniversalModel(**present.hparams)
        model.load_state_dict(present.state_dict())
        stream = NodeStream(self, model, present.current_epoch)
        return DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=AHEAD)

    def val_dataloader(self) -> DataLoader:
        """One batch of each validation gallery, the same at each epoch."""
        if self._validation is None:
            numbers = (VALIDATION + number for number in range(10 * self.validation_galleries))
            examples = (make_example(self.dataset, number, self._model(), False) for number in numbers)
            found = (example for example in examples if example is not None)
            rng = np.random.default_rng(self.seed)
            some = (next(found) for _ in range(self.validation_galleries))
            self._validation = [make_batch([example], self.nodes_per_step, rng) for example in some]
        return DataLoader(self._validation, batch_size=None)  # type: ignore[arg-type]  # a sequence does

    def _model(self) -> UniversalModel:
        assert self.trainer is not None and isinstance(self.trainer.lightning_module, UniversalModel)
        return self.trainer.lightning_module


class NodeStream(IterableDataset):
    """Batches of one epoch; those of another epoch or process are others."""

    def __init__(self, data: NodeDataModule, model: UniversalModel, epoch: int) -> None:
        self.dataset, self.model, self.epoch = data.dataset, model, epoch
        self.nodes_per_step, self.galleries = data.nodes_per_step, data.galleries
        self.place = [data.seed, rank(), epoch]

    def __iter__(self) -> Iterator[Batch]:
        rng = np.random.default_rng(self.place)
        at_hand: list[Example] = []
        while True:
            # In the first epoch the weights are random, so clusters are not merged by them.
            example = make_example(self.dataset, TRAIN + int(rng.integers(2**40)), self.model, self.epoch > 0)
            if example is None:
                continue
            at_hand = [*at_hand[-self.galleries + 1 :], example]
            for first in [example, *(at_hand[i] for i in rng.integers(len(at_hand), size=FRESH - 1))]:
                k = first.nodes.graph.k
                alike = [other for other in at_hand if other.nodes.graph.k == k and other is not first]
                others = [alike[i] for i in rng.permutation(len(alike))[: AT_ONCE - 1]]
                yield make_batch([first, *others], self.nodes_per_step, rng)


def make_example(dataset: RandomGalleries, number: int, model: UniversalModel, merge: bool) -> Example | None:
    """Clusters of a random gallery as they are at some time of a clustering; None where there are hardly any.

    Parameters
    ----------
    dataset : RandomGalleries
    number : int
        Of the gallery.
    model : UniversalModel
        With whose present weights some clusters are merged.
    merge : bool
        Whether that is done.
    """
    rng = np.random.default_rng([dataset.seed, number, 1])
    features, labels_true = dataset.draw(number)
    gallery = Gallery("random", features, build_knn(features, min(GRAPH_K, len(features))))
    rule = UnsupervisedRule(log_uniform(rng, (1e-6, 3e-3)), num_trials=1, merging=bool(rng.random() < 0.6))
    labels = rule(gallery).labels
    features = rule.transformed(gallery, labels)
    if merge and rng.random() < 0.45:
        scores, threshold = ClusterScores(model, False), rng.uniform(0.4, 0.9)
        for _ in range(rng.integers(1, 8)):
            labels = merge_pairs(*scores.merge_probability(features, labels), threshold)[labels]
            if labels.max() < 1:
                break
    elif rng.random() < 0.6:
        labels = partly_merged(labels, labels_true, rng)
    if labels.max() < 3:
        return None
    return Example(describe(features, labels, model.candidates), majority(labels, labels_true))


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


def make_batch(examples: list[Example], num_nodes: int, rng: np.random.Generator) -> Batch:
    """Random nodes of ``examples``, whose graphs have the same K, about ``num_nodes`` in all."""
    parts, same, sizes = [], [], []
    for number, (described, identities) in enumerate(examples):
        rows = rng.permutation(len(identities))[: max(2, num_nodes // len(examples))]
        batch, neighbours = NodeBatch.of(described, rows), described.graph.indices[rows]
        parts.append(batch._replace(number=batch.number + number))
        same.append(identities[neighbours] == identities[rows, None])
        sizes.append(described.nodes.sizes[neighbours])
    targets = torch.from_numpy(np.concatenate(same).astype(np.float32))
    nodes = NodeBatch._make(map(torch.cat, zip(*parts, strict=True)))
    return targets, nodes, torch.from_numpy(np.concatenate(sizes))
