"""What every trainable model shares: training on sampled kNN edge pairs, scores of a gallery, its checkpoint.

Shape letters: B batch, K neighbours with the face itself first, D feature dimension.
"""

import json
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
        losses = self.losses(batch, training=True)
        logged = {f"train/{name}": loss for name, loss in losses.items()}
        self.log_dict(logged, on_step=True, on_epoch=True, batch_size=len(batch[0]), sync_dist=True)
        return reduce(torch.add, losses.values())

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
    """

    feature_dim: int
    k: int

    def __init__(
        self, feature_dim: int, k: int, optimizer: MakeOptimizer | None = None, scheduler: MakeScheduler | None = None
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.feature_dim, self.k = feature_dim, k

    @abstractmethod
    def networks(self, dtype: torch.dtype) -> PairNetworks:
        """The networks for inference with features of type ``dtype``; the model itself must stay as it is."""

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
