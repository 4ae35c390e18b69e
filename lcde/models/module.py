"""The Lightning module: both networks, their losses, the optimiser and its schedule."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.nn import functional as F

from lcde.data.datamodule import Neighbourhoods
from lcde.models.encoder import require_divisible
from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet


class LCDEModule(LightningModule):
    """LCENet and PCENet trained in one run on the pairs of a batch.

    feature_dim, k:      D and K of the data
    dim_feedforward:     width of the feed-forward layers; None takes 4·D, which is the published 1024 at D = 256
    optimizer:           parameters → optimiser
    scheduler:           (optimiser, total_steps=…) → schedule, stepped every batch
    Raises `InputError` where ``nhead`` does not divide D + K and D + 2K.
    """

    def __init__(
        self,
        feature_dim: int,
        k: int,
        num_layers: int,
        nhead: int,
        dim_feedforward: int | None,
        dropout: float,
        optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        require_divisible(feature_dim, k, nhead)
        # Plain numbers only, so that the checkpoint loads with weights_only=True.
        self.save_hyperparameters(ignore=["optimizer", "scheduler"])
        width = dim_feedforward or 4 * feature_dim
        self.lcenet = LCENet(feature_dim, k, num_layers, nhead, width, dropout)
        self.pcenet = PCENet(feature_dim, k, num_layers, nhead, width, dropout)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler

    def training_step(self, batch: Neighbourhoods, batch_idx: int) -> Tensor:
        losses = self._losses(batch)
        logged = {f"train/{name}": loss for name, loss in losses.items()}
        self.log_dict(logged, on_step=True, on_epoch=True, batch_size=len(batch.features))
        return losses["connectivity_loss"] + losses["edge_loss"]

    def validation_step(self, batch: Neighbourhoods, batch_idx: int, dataloader_idx: int = 0) -> None:
        part = self.trainer.datamodule.evaluation_parts[dataloader_idx].name
        losses = {f"val/{part}/{name}": loss for name, loss in self._losses(batch).items()}
        self.log_dict(losses, batch_size=len(batch.features), sync_dist=True, add_dataloader_idx=False)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.make_optimizer(self.parameters())
        scheduler = self.make_scheduler(optimizer, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _losses(self, batch: Neighbourhoods) -> dict[str, Tensor]:
        """Cross-entropy of LCENet over all neighbours of both ends, and of PCENet over the pairs."""
        connectivity = self.lcenet(batch.features.flatten(0, 1))  # (2B, K, 2)
        edge = self.pcenet(batch.features.flatten(1, 2))  # (B, 2)
        return {
            "connectivity_loss": F.cross_entropy(connectivity.flatten(0, 1), batch.same_as_centre.flatten()),
            "edge_loss": F.cross_entropy(edge, batch.same_identity),
        }
