"""The data module: serves sampled kNN edge pairs as indices and builds their neighbourhoods on the device."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lcde.clustering.density import symmetrise
from lcde.data.datasets import Dataset, Parts
from lcde.data.gallery import Gallery
from lcde.distributed import broadcast, rank, world_size
from lcde.errors import InputError
from lcde.models.base import Neighbourhoods
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
    """

    pairs: Tensor
    same_identity: Tensor


class PairDataset(TorchDataset[EdgePairs]):
    """Pairs drawn for one epoch; a whole batch is one fancy index."""

    def __init__(self, pairs: np.ndarray, labels_true: np.ndarray) -> None:
        self.pairs = torch.from_numpy(pairs)
        self.same_identity = torch.from_numpy((labels_true[pairs[:, 0]] == labels_true[pairs[:, 1]]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, positions: list[int]) -> EdgePairs:
        return EdgePairs(self.pairs[positions], self.same_identity[positions])


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
    """

    def __init__(
        self, dataset: Dataset, sampler: PairSampler, batch_size: int, seed: int, rotate: bool = False
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"data.batch_size={batch_size} must be 1 or more.")
        self.dataset, self.sampler, self.batch_size, self.seed, self.rotate = dataset, sampler, batch_size, seed, rotate
        self.parts: Parts | None = None
        self._connectivity: np.ndarray | None = None
        self._on_device: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def setup(self, stage: str = "fit") -> None:
        """Read all parts, or make sure that they can be read, and build their kNN graphs."""
        if self.parts is None:
            parts = self.dataset.load(train=True)
            self.parts = replace(parts, evaluation=list(parts.evaluation))  # read once, as each epoch clusters them

    @property
    def train_gallery(self) -> Gallery:
        """The faces to train on."""
        assert self.parts is not None and self.parts.train is not None
        return self.parts.train

    @property
    def galleries(self) -> list[Gallery]:
        """Held-out identities, if there are any, then the evaluation parts; each epoch clusters all of them."""
        assert self.parts is not None
        return list(self.parts.scored())

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
        gallery = self.parts.validation if self.parts is not None else None
        if gallery is None:
            return []
        sampler = UniformPairs(min(1.0, VALIDATION_PAIRS / len(gallery)))
        rng = np.random.default_rng(self.seed)
        return [self._loader(gallery, sampler(gallery.graph, gallery.graph.similarities, rng))]

    def on_after_batch_transfer(self, batch: EdgePairs, dataloader_idx: int) -> Neighbourhoods:
        """Gather the neighbourhoods of a batch on its device."""
        assert self.trainer is not None
        training = self.trainer.training
        gallery = self.train_gallery if training else self.galleries[0]
        features, indices, labels = self._tensors(gallery, batch.pairs.device)
        neighbours = indices[batch.pairs].long()  # (B, 2, K)
        same_as_end = labels[neighbours][:, None] == labels[batch.pairs][..., None, None]  # (B, 2, 2, K)
        faces = features[neighbours]
        if training and self.rotate:
            faces = faces @ _random_rotation(faces.shape[-1]).to(faces)
        return Neighbourhoods(faces, same_as_end.long(), batch.same_identity)

    def _draw_pairs(self) -> np.ndarray:
        """The pairs (P, 2) of the present epoch, in random order."""
        assert self.trainer is not None
        graph = self.train_gallery.graph
        # Before the model has scored the part, similarity is the best guess at connectivity.
        connectivity = graph.similarities.clip(0, 1) if self._connectivity is None else self._connectivity
        rng = np.random.default_rng([self.seed, self.trainer.current_epoch])
        return rng.permutation(self.sampler(graph, connectivity, rng))

    def _loader(self, gallery: Gallery, pairs: np.ndarray) -> DataLoader:
        """This rank's share of ``pairs``: the ranks' batches of a step are together the batch of one process."""
        assert gallery.labels_true is not None
        share = pairs[rank() : len(pairs) // world_size() * world_size() : world_size()]
        return DataLoader(PairDataset(share, gallery.labels_true), self.batch_size, collate_fn=_as_is)

    def _tensors(self, gallery: Gallery, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Features, neighbours and identities of ``gallery`` on ``device``."""
        if id(gallery) not in self._on_device:
            arrays = gallery.features, gallery.graph.indices, gallery.labels_true
            features, indices, labels = (torch.from_numpy(np.asarray(array)).to(device) for array in arrays)
            self._on_device[id(gallery)] = features, indices, labels
        return self._on_device[id(gallery)]


def _random_rotation(width: int) -> Tensor:
    """A uniformly distributed orthogonal matrix (width, width), by QR of a Gaussian one (Mezzadri 2007)."""
    rotation, triangle = torch.linalg.qr(torch.randn(width, width))
    return rotation * triangle.diagonal().sign()


def _as_is(batch: Any) -> Any:
    return batch
