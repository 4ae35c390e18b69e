"""The data module: serves sampled kNN edge pairs as indices and builds their neighbourhoods on the device."""

from typing import NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lcde.clustering.density import symmetrise
from lcde.data.datasets import Dataset as FaceDataset
from lcde.data.pairs import PairSampler, UniformPairs
from lcde.data.part import Part
from lcde.distributed import broadcast, rank, world_size

VALIDATION_PAIRS = 2048  # per part: enough for a steady loss, small beside the clustering of the part


class EdgePairs(NamedTuple):
    """A batch as it leaves the loader.

    pairs:          (B, 2) int64 face numbers
    same_identity:  (B,) int64, 1 where both ends are one person
    """

    pairs: Tensor
    same_identity: Tensor


class Neighbourhoods(NamedTuple):
    """A batch as the networks take it, on the device.

    features:         (B, 2, K, D) float32, the neighbourhoods of both ends
    same_as_end:      (B, 2, 2, K) int64, [:, e, f] is 1 where a neighbour of end f has the identity of end e
    same_identity:    (B,) int64
    """

    features: Tensor
    same_as_end: Tensor
    same_identity: Tensor


class PairDataset(Dataset[EdgePairs]):
    """Pairs drawn for one epoch; a whole batch is one fancy index."""

    def __init__(self, pairs: np.ndarray, labels_true: np.ndarray) -> None:
        self.pairs = torch.from_numpy(pairs)
        self.same_identity = torch.from_numpy((labels_true[pairs[:, 0]] == labels_true[pairs[:, 1]]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, positions: list[int]) -> EdgePairs:
        return EdgePairs(self.pairs[positions], self.same_identity[positions])


class EdgePairDataModule(LightningDataModule):
    """Serves the training part of ``dataset`` as sampled edge pairs, and its evaluation parts for validation.

    dataset:     an `lcde.data.datasets.Dataset`
    sampler:     draws the pairs of each epoch anew, with the latest connectivity of the training part
    batch_size:  pairs a step and process
    seed:        of the draws; epoch and seed alone decide them, whichever run asks
    rotate:      whether to turn the features of each training step at random, which leaves all similarities as they
        are: the networks cannot learn directions by heart
    """

    def __init__(
        self, dataset: FaceDataset, sampler: PairSampler, batch_size: int, seed: int, rotate: bool = False
    ) -> None:
        super().__init__()
        self.rotate = rotate
        self.dataset, self.sampler, self.batch_size, self.seed = dataset, sampler, batch_size, seed
        self.train_part: Part | None = None
        self.evaluation_parts: list[Part] = []
        self.train_connectivity: np.ndarray | None = None
        self._on_device: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def setup(self, stage: str) -> None:
        if self.train_part is None:
            self.train_part, parts = self.dataset.load(train=True)
            self.evaluation_parts = list(parts)  # each epoch clusters all of them

    def set_train_connectivity(self, connectivity: np.ndarray) -> None:
        """Tell the sampler what LCENet now gives for the training part: (N, K) float32, not symmetrised."""
        self.train_connectivity = symmetrise(connectivity, self.train_part.indices)

    def train_dataloader(self) -> DataLoader:
        # Rank 0 alone knows the connectivity.
        pairs = broadcast(self._draw_pairs(self.trainer.current_epoch) if rank() == 0 else None)
        step = self.batch_size * world_size()
        return self._loader(self.train_part, pairs[: max(len(pairs) // step, 1) * step])  # no last, smaller step

    def _draw_pairs(self, epoch: int) -> np.ndarray:
        """The pairs (P, 2) of an epoch, in random order."""
        part = self.train_part
        # Before LCENet has scored the part, similarity is the best guess at connectivity.
        connectivity = part.similarities.clip(0, 1) if self.train_connectivity is None else self.train_connectivity
        rng = np.random.default_rng([self.seed, epoch])
        return rng.permutation(self.sampler(part.indices, part.similarities, connectivity, rng))

    def val_dataloader(self) -> list[DataLoader]:
        loaders = []
        for part in self.evaluation_parts:
            sampler = UniformPairs(min(1.0, VALIDATION_PAIRS / len(part)))
            pairs = sampler(part.indices, part.similarities, part.similarities, np.random.default_rng(self.seed))
            loaders.append(self._loader(part, pairs))
        return loaders

    def on_after_batch_transfer(self, batch: EdgePairs, dataloader_idx: int) -> Neighbourhoods:
        training = self.trainer.training
        part = self.train_part if training else self.evaluation_parts[dataloader_idx]
        features, indices, labels = self._tensors(part, batch.pairs.device)
        neighbours = indices[batch.pairs].long()  # (B, 2, K)
        same_as_end = labels[neighbours][:, None] == labels[batch.pairs][..., None, None]  # (B, 2, 2, K)
        faces = features[neighbours]
        if training and self.rotate:
            faces = faces @ _random_rotation(faces.shape[-1]).to(faces)
        return Neighbourhoods(faces, same_as_end.long(), batch.same_identity)

    def _loader(self, part: Part, pairs: np.ndarray) -> DataLoader:
        """This rank's share of ``pairs``: the ranks' batches of a step are together the batch of one process."""
        share = pairs[rank() : len(pairs) // world_size() * world_size() : world_size()]
        return DataLoader(PairDataset(share, part.labels_true), self.batch_size, collate_fn=_as_is)

    def _tensors(self, part: Part, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if id(part) not in self._on_device:
            arrays = (part.features, part.indices, part.labels_true)
            self._on_device[id(part)] = tuple(torch.from_numpy(array).to(device) for array in arrays)
        return self._on_device[id(part)]


def _random_rotation(width: int) -> Tensor:
    """An orthogonal matrix (width, width), all alike likely (QR of a Gaussian one, Mezzadri 2007)."""
    rotation, triangle = torch.linalg.qr(torch.randn(width, width))
    return rotation * triangle.diagonal().sign()


def _as_is(batch: EdgePairs) -> EdgePairs:
    return batch
