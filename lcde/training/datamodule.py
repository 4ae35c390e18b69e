"""The data module: serves sampled kNN edge pairs as indices and builds their neighbourhoods on the device."""

from dataclasses import replace
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lcde.clustering.density import symmetrise
from lcde.data.datasets import Dataset
from lcde.data.gallery import Gallery
from lcde.distributed import broadcast, rank, world_size
from lcde.errors import InputError
from lcde.models.base import DeviceGraph, Neighbourhoods, PairModel
from lcde.models.scoring import to_device
from lcde.settings import Within, check_settings
from lcde.training.pairs import PairSampler, UniformPairs

VALIDATION_PAIRS = 2048  # enough for a steady loss, little work beside the clustering of the gallery


class EdgePairs(NamedTuple):
    """A batch as it leaves the loader.

    Attributes
    ----------
    pairs : (B, 2) int64
        Face numbers.
    same_identity : (B,) int64
        1 where both ends are of one identity.
    number : int
        Of the batch, within its epoch.
    """

    pairs: Tensor
    same_identity: Tensor
    number: int


class EdgePairDataModule(LightningDataModule):
    """Serves the training part of a data set as sampled edge pairs, and its held-out identities for validation.

    Parameters
    ----------
    dataset : Dataset
    sampler : PairSampler
        Draws the pairs of each epoch anew, with the latest connectivity of the training part.
    batch_size : int
        Pairs per step and process.
    seed : int
        Of the draws; epoch and seed alone decide them, in a resumed run too.
    rotate : bool
        Whether to rotate the features of each training step at random, which leaves all similarities as they are: the
        networks cannot memorise directions.

    Attributes
    ----------
    parts : Parts
        The galleries of ``dataset``, which are read at once and stay in memory.
    train_gallery : Gallery
        The faces to train on.

    Raises
    ------
    InputError
        Where files are missing or do not fit.
    """

    batch_size: Annotated[int, Within(1)]
    seed: Annotated[int, Within(0)]
    rotate: bool

    model_class = PairModel  # that takes its batches

    def __init__(self, dataset: Dataset, sampler: PairSampler, batch_size: int, seed: int, rotate: bool) -> None:
        super().__init__()
        self.sampler, self.batch_size, self.seed, self.rotate = sampler, batch_size, seed, rotate
        check_settings(self, "data.")
        parts = dataset.load(train=True)
        assert parts.train is not None
        self.train_gallery = parts.train
        self.parts = replace(parts, evaluation=list(parts.evaluation))  # read once, as each epoch clusters them
        self._connectivity: np.ndarray | None = None
        self._on_device: dict[int, DeviceGraph] = {}

    def set_train_connectivity(self, connectivity: np.ndarray) -> None:
        """Tell the sampler what the model now gives for the training part: (N, K) float32, not symmetrised."""
        self._connectivity = symmetrise(connectivity, self.train_gallery.graph.indices)

    def train_dataloader(self) -> DataLoader:
        """This process's share of the pairs of the present epoch."""
        # Rank 0 alone has the connectivity.
        pairs = broadcast(self._draw_pairs() if rank() == 0 else None)
        step = self.batch_size * world_size()
        return self._loader(self.train_gallery, pairs[: max(len(pairs) // step, 1) * step])  # no last, smaller step

    def val_dataloader(self) -> list[DataLoader]:
        """The same random pairs of the held-out identities at each epoch; nothing where none are held out."""
        gallery = self.parts.validation
        if gallery is None:
            return []
        sampler = UniformPairs(min(1.0, VALIDATION_PAIRS / len(gallery)))
        rng = np.random.default_rng(self.seed)
        return [self._loader(gallery, sampler(gallery.graph, gallery.graph.similarities, rng))]

    def on_after_batch_transfer(self, batch: EdgePairs, dataloader_idx: int) -> Neighbourhoods:
        """Gather the neighbourhoods of a batch on its device."""
        assert self.trainer is not None
        training = self.trainer.training
        gallery = self.train_gallery if training else self.parts.validation
        assert gallery is not None
        graph = self._graph(gallery, batch.pairs.device)
        if training and self.rotate:
            # Of epoch and batch alone, so that a resumed run draws what the first one would.
            rng = np.random.default_rng([self.seed, self.trainer.current_epoch, batch.number])
            graph = graph._replace(rotation=_random_rotation(graph.features.shape[1], rng).to(graph.features))
        labels, neighbours = graph.labels_true, graph.indices[batch.pairs].long()  # (B, 2, K)
        assert labels is not None
        same_as_end = labels[neighbours][:, None] == labels[batch.pairs][..., None, None]  # (B, 2, 2, K)
        faces = graph.features_of(neighbours)
        return Neighbourhoods(faces, same_as_end.long(), batch.same_identity, batch.pairs, graph)

    def _draw_pairs(self) -> np.ndarray:
        """The pairs (P, 2) of the present epoch, in random order."""
        assert self.trainer is not None
        graph = self.train_gallery.graph
        # Before the model has scored the part, similarity is the best guess at connectivity.
        connectivity = graph.similarities.clip(0, 1) if self._connectivity is None else self._connectivity
        rng = np.random.default_rng([self.seed, self.trainer.current_epoch])
        pairs = self.sampler(graph, connectivity, rng)
        if not len(pairs):
            raise InputError(f"pairs=… draws no pair of the {len(graph)} faces to train on; raise its pairs per face.")
        return rng.permutation(pairs)

    def _loader(self, gallery: Gallery, pairs: np.ndarray) -> DataLoader:
        """This rank's share of ``pairs``: the ranks' batches of a step are together the batch of one process."""
        share = torch.from_numpy(pairs[rank() : len(pairs) // world_size() * world_size() : world_size()])
        first, second = torch.from_numpy(gallery.labels_true)[share].T
        same_identity, size = (first == second).long(), self.batch_size
        starts = range(0, len(share), size)
        batches = [
            EdgePairs(share[start : start + size], same_identity[start : start + size], number)
            for number, start in enumerate(starts)
        ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a sequence does

    def _graph(self, gallery: Gallery, device: torch.device) -> DeviceGraph:
        """Features, neighbours as the model reads them, and identities of ``gallery`` on ``device``."""
        if id(gallery) not in self._on_device:
            assert self.trainer is not None
            model = self.trainer.lightning_module
            assert isinstance(model, PairModel)
            assert gallery.labels_true is not None
            arrays = gallery.features, model.graph_of(gallery).indices, gallery.labels_true
            self._on_device[id(gallery)] = DeviceGraph(*(to_device(array, device) for array in arrays))
        return self._on_device[id(gallery)]


def _random_rotation(width: int, rng: np.random.Generator) -> Tensor:
    """A uniformly distributed orthogonal matrix (width, width), by QR of a Gaussian one (Mezzadri 2007)."""
    rotation, triangle = torch.linalg.qr(torch.from_numpy(rng.standard_normal((width, width))))
    return rotation * triangle.diagonal().sign()
