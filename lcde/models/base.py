"""What every trainable model shares: training on sampled kNN edge pairs, scores of a gallery, its checkpoint.

Shape letters: B batch, K neighbours with the face itself first, D feature dimension.
"""

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lcde.data.gallery import Gallery, KNNGraph
from lcde.distributed import rank
from lcde.errors import InputError
from lcde.methods.method import Scores
from lcde.models.precision import fastest_dtype
from lcde.models.score_cache import CachedScores, fingerprint
from lcde.models.scoring import DeviceGraph, GraphScorer, PairNetworks

__all__ = ["DeviceGraph", "MakeOptimizer", "MakeScheduler", "Model", "Neighbourhoods", "PairModel", "PairNetworks"]

MakeOptimizer = Callable[[Iterable[Any]], torch.optim.Optimizer]
MakeScheduler = Callable[..., torch.optim.lr_scheduler.LRScheduler]


class Neighbourhoods(NamedTuple):
    """A batch of kNN edge pairs as a model takes it, on the device.

    Nearly all models read the first three alone.

    Attributes
    ----------
    features : (B, 2, K, D) float32
        Neighbourhoods of both ends of each pair, each end first among its K neighbours.
    same_as_end : (B, 2, 2, K) int64
        ``[:, e, f]`` is 1 where a neighbour of end f has the identity of end e.
    same_identity : (B,) int64
        1 where both ends are of one identity.
    pairs : (B, 2) int64
        Face numbers.
    graph : DeviceGraph
        The gallery that the pairs are of, for models that read more than the neighbours of a face.
    """

    features: Tensor
    same_as_end: Tensor
    same_identity: Tensor
    pairs: Tensor
    graph: DeviceGraph

    @property
    def same_as_centre(self) -> Tensor:
        """1 where a neighbour of a face has its identity: (2B, K) int64, the ends of each pair side by side."""
        return self.same_as_end.diagonal(dim1=1, dim2=2).movedim(-1, 1).flatten(0, 1)

    def split(self, pieces: int) -> list["Neighbourhoods"]:
        """The pairs in at most ``pieces`` batches of nearly equal size, none of which is empty."""
        features, same_as_end, same_identity, pairs = (
            torch.tensor_split(tensor, min(pieces, len(tensor))) for tensor in self[:4]
        )
        return [
            Neighbourhoods(*piece, self.graph)
            for piece in zip(features, same_as_end, same_identity, pairs, strict=True)
        ]


class Model(LightningModule, ABC):
    """Base class of trainable models.

    A subclass implements `losses` and `bind`. Its constructor passes the parameters below on. Its own parameters are
    stored in checkpoints as hyper parameters and must be plain values (numbers, strings, lists, dicts), so that a
    checkpoint can be read without running code.

    Parameters
    ----------
    optimizer : callable, optional
        parameters, or groups of them -> optimiser. Only training needs it.
    scheduler : callable, optional
        (optimiser, total_steps=...) -> learning rate schedule, stepped after every batch.

    Raises
    ------
    InputError
        Where a hyper parameter is no plain value.

    Attributes
    ----------
    feature_dim, k : int, optional
        D and K of the galleries that it is made for; None where any will do.
    layer_hparams : tuple of str
        Class attribute: names of the constructor's parameters that `layer_settings` gives.
    batch_idx : int
        Number of the present training step within its epoch, the same on all processes of a job.
    """

    feature_dim: int | None = None
    k: int | None = None
    layer_hparams: ClassVar[tuple[str, ...]] = ()
    batch_idx = 0

    def __init__(self, optimizer: MakeOptimizer | None = None, scheduler: MakeScheduler | None = None) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "scheduler"], logger=False)  # the subclass's too
        try:
            json.dumps(dict(self.hparams))
        except TypeError:
            reason = f"the model's hyper parameters {dict(self.hparams)} are not plain values, which a checkpoint needs"
            raise InputError(f"{reason}; in a YAML file, add _convert_: all to the model.") from None
        self.make_optimizer, self.make_scheduler = optimizer, scheduler

    @abstractmethod
    def losses(self, batch: Any, training: bool) -> dict[str, Tensor]:
        """Losses of a batch by name, logged as ``train/<name>`` and ``val/<name>``; training minimises their sum."""

    @abstractmethod
    def bind(self, gallery: Gallery, precision: str, show_progress: bool, score_cache: Path | None) -> Scores:
        """Scores of ``gallery``, computed on the model's device in evaluation mode, which the model stays in.

        Parameters
        ----------
        gallery : Gallery
        precision : str
            "float32", or "auto" for bfloat16 where the device gains from it.
        show_progress : bool
        score_cache : Path, optional
            Folder where scores are kept by content.
        """

    def require_fit(self, gallery: Gallery) -> None:
        """Raise `InputError` where D or K of ``gallery`` are others than those that the model is made for."""
        dim, k, faces = gallery.features.shape[1], gallery.graph.k, f"{gallery.name}, of {len(gallery)} faces"
        if (dim, k) != (self.feature_dim, self.k):
            trained = f"the model was trained with feature_dim={self.feature_dim} and k={self.k}"
            raise InputError(f"{trained}, but {faces}, has feature_dim={dim} and a kNN graph of k={k}.")

    def layer_settings(self) -> dict[str, Any]:
        """Hyper parameters that a model must share with this one to start from its weights."""
        return {name: self.hparams[name] for name in self.layer_hparams}

    def parameter_groups(self) -> Iterable[Any]:
        """What the optimiser gets: the parameters, or dicts of some of them and their own settings."""
        return self.parameters()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Sum of the losses."""
        self.batch_idx = batch_idx
        losses = self.training_losses(batch)
        logged = {f"train/{name}": loss for name, loss in losses.items()}
        self.log_dict(logged, on_step=True, on_epoch=True, batch_size=len(batch[0]), sync_dist=True)
        return reduce(torch.add, losses.values())

    def training_losses(self, batch: Any) -> dict[str, Tensor]:
        """Losses of a training step by name."""
        return self.losses(batch, training=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the losses on pairs of held-out identities."""
        losses = {f"val/{name}": loss for name, loss in self.losses(batch, training=False).items()}
        self.log_dict(losses, batch_size=len(batch[0]), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimiser and schedule as the constructor was given them."""
        if self.make_optimizer is None:
            raise InputError("the model has no optimizer; training needs one, such as model.optimizer=….")
        try:
            optimizer = self.make_optimizer(self.parameter_groups())
        except (TypeError, ValueError) as error:
            raise InputError(f"model.optimizer cannot be used: {str(error).rstrip('.')}.") from error
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the model's class and hyper parameters under "method", where `load_checkpoint` reads them."""
        target = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint.setdefault("method", {})["model"] = {"_target_": target, **self.hparams}


class PairModel(Model):
    """Base class of models that learn from sampled kNN edge pairs and score the edges of a kNN graph.

    A subclass implements `losses` of `Neighbourhoods`, and `networks`.

    Parameters
    ----------
    feature_dim, k : int
        D and K of the galleries that it is made for.
    optimizer, scheduler : callable, optional
        As of `Model`.

    Attributes
    ----------
    mean_over_pairs : bool
        Class attribute: whether the losses of a batch are the means of those of its pairs, so that a batch may be
        computed in pieces.
    pieces : int, optional
        In how many pieces each training batch is computed, more than one where the device's memory does not suffice for
        a whole one. None until the first step of a run has found it.
    """

    mean_over_pairs: ClassVar[bool] = False

    feature_dim: int
    k: int
    pieces: int | None = None

    def __init__(
        self, feature_dim: int, k: int, optimizer: MakeOptimizer | None = None, scheduler: MakeScheduler | None = None
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.feature_dim, self.k = feature_dim, k

    @abstractmethod
    def networks(self, dtype: torch.dtype) -> PairNetworks:
        """The networks for inference with features of type ``dtype``; the model itself must stay as it is."""

    def on_train_start(self) -> None:
        """Reset `pieces`: another run may use a device with other memory."""
        self.pieces = None

    def training_losses(self, batch: Neighbourhoods) -> dict[str, Tensor]:
        """Losses of a training step, in pieces where the memory does not suffice."""
        if self.pieces is None:
            self.pieces = self._pieces_that_fit(batch)
        return self._losses_in(self.pieces, batch)

    def _pieces_that_fit(self, batch: Neighbourhoods) -> int:
        """The smallest power of two of pieces whose gradients can be computed; a warning if it is not 1.

        It is tried before the first step: within one, the other processes of a job would wait for this one's gradients.

        Raises
        ------
        InputError
            Where neither the batch fits nor pieces of it, or its losses are no means over pairs.
        """
        pieces = 1
        while not self._fits(pieces, batch):
            pieces *= 2
        if pieces > 1:
            warnings.warn(f"{self._too_large(batch)}; each batch is computed in {pieces} pieces.", stacklevel=2)
        return pieces

    def _too_large(self, batch: Neighbourhoods) -> str:
        return f"the memory of {self.device} does not suffice to train on {len(batch.pairs)} pairs at once"

    def _fits(self, pieces: int, batch: Neighbourhoods) -> bool:
        """Compute gradients of ``batch``, which leaves the model as it is, and tell whether the memory sufficed."""
        buffers = [buffer.clone() for buffer in self.buffers()]
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        try:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                total = reduce(torch.add, self._losses_in(pieces, batch).values())
                torch.autograd.grad(total, parameters, allow_unused=True)
        except torch.OutOfMemoryError:
            if not self.mean_over_pairs or pieces >= len(batch.pairs):
                raise InputError(f"{self._too_large(batch)}; lower data.batch_size, or take a smaller model.") from None
            return False
        finally:
            torch.clear_autocast_cache()  # casts of the weights, whose graphs are gone
            for buffer, before in zip(self.buffers(), buffers, strict=True):
                buffer.copy_(before)
        return True

    def _losses_in(self, pieces: int, batch: Neighbourhoods) -> dict[str, Tensor]:
        """Losses of ``batch``; of several pieces, the mean of theirs, weighted by their numbers of pairs."""
        if pieces == 1:
            return self.losses(batch, training=True)
        total: dict[str, Tensor] = {}
        for piece in batch.split(pieces):
            # Intermediate values are computed again in the backward pass: those of one piece are in memory at a time.
            losses = checkpoint(self.losses, piece, True, use_reentrant=False)
            share = len(piece.pairs) / len(batch.pairs)
            total = {name: total.get(name, 0) + share * loss for name, loss in losses.items()}
        return total

    def graph_of(self, gallery: Gallery) -> KNNGraph:
        """The kNN graph of ``gallery`` as the networks read it, in training, too.

        A model that gives connectivity keeps the columns of the gallery's own graph, which rules read beside it.
        """
        return gallery.graph

    def bind(self, gallery: Gallery, precision: str, show_progress: bool, score_cache: Path | None) -> Scores:
        """As `Model.bind`; raises `InputError` where D or K of ``gallery`` are others."""
        self.require_fit(gallery)
        dtype = fastest_dtype(self.device) if precision == "auto" else torch.float32
        self.eval()

        def scorer() -> GraphScorer:
            read = replace(gallery, graph=self.graph_of(gallery))
            return GraphScorer(self.networks(dtype), read, self.device, dtype, show_progress)

        if score_cache is None or rank() > 0:
            return scorer()
        return CachedScores(scorer, score_cache, fingerprint(self, gallery, dtype))
