"""The Lightning module: both networks, their losses, the optimiser and its schedule."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from lcde.data.datamodule import Neighbourhoods
from lcde.errors import InputError
from lcde.models.encoder import require_divisible
from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet


class LCDEModule(LightningModule):
    """LCENet and PCENet trained in one run on the pairs of a batch.

    feature_dim, k:      D and K of the data
    dim_feedforward:     width of the feed-forward layers; None takes 4·D, which is the published 1024 at D = 256
    neighbours_per_end:  neighbours of each end that a training step reads, the end itself among them, drawn anew for
        each step, as PatchDropout does with images (Liu et al. 2022); more cost more and teach hardly more
    negative_weight:     weight of pairs of different identities in PCENet's loss: one wrong edge merges two clusters
        whole, a missing one is mostly made up for by others
    optimizer:           parameters → optimiser
    scheduler:           (optimiser, total_steps=…) → schedule, stepped every batch
    Raises `InputError` where ``nhead`` does not divide D + K and D + 2K, and for fewer than 2 ``neighbours_per_end``.
    """

    def __init__(
        self,
        feature_dim: int,
        k: int,
        num_layers: int,
        nhead: int,
        dim_feedforward: int | None,
        dropout: float,
        neighbours_per_end: int,
        negative_weight: float,
        optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        require_divisible(feature_dim, k, nhead)
        if neighbours_per_end < 2:
            raise InputError(
                f"model.neighbours_per_end={neighbours_per_end} must be 2 or more, the end itself counted."
            )
        # Plain numbers only, so that the checkpoint loads with weights_only=True.
        self.save_hyperparameters(ignore=["optimizer", "scheduler"])
        width = dim_feedforward or 4 * feature_dim
        self.lcenet = LCENet(feature_dim, k, num_layers, nhead, width, dropout)
        self.pcenet = PCENet(feature_dim, k, num_layers, nhead, width, dropout)
        self.token_head = TokenHead(feature_dim + 2 * k)
        self.register_buffer("edge_weight", torch.tensor([negative_weight, 1.0]), persistent=False)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler

    def training_step(self, batch: Neighbourhoods, batch_idx: int) -> Tensor:
        # Of epoch and step alone: the processes of a job read the same columns, as one process does.
        others = np.random.default_rng([self.current_epoch, batch_idx]).permutation(self.hparams.k - 1) + 1
        columns = torch.from_numpy(np.append(0, others[: self.hparams.neighbours_per_end - 1])).to(self.device)
        losses = self._losses(batch, columns)
        logged = {f"train/{name}": loss for name, loss in losses.items()}
        self.log_dict(logged, on_step=True, on_epoch=True, batch_size=len(batch.features), sync_dist=True)
        return sum(losses.values())

    def validation_step(self, batch: Neighbourhoods, batch_idx: int, dataloader_idx: int = 0) -> None:
        part = self.trainer.datamodule.evaluation_parts[dataloader_idx].name
        losses = {f"val/{part}/{name}": loss for name, loss in self._losses(batch).items()}
        self.log_dict(losses, batch_size=len(batch.features), sync_dist=True, add_dataloader_idx=False)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.make_optimizer(self.parameters())
        scheduler = self.make_scheduler(optimizer, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _losses(self, batch: Neighbourhoods, columns: Tensor | None = None) -> dict[str, Tensor]:
        """Cross-entropies: LCENet over neighbours of both ends, PCENet over the pairs and over its tokens.

        ``columns`` (Q,), of which the first is 0, are those of the neighbours that are read, without it Q = K.
        """
        same_as_end = batch.same_as_end if columns is None else batch.same_as_end[..., columns]  # (B, 2, 2, Q)
        features, device = batch.features, batch.features.device.type
        if torch.is_autocast_enabled(device):  # the residual stream of the networks has the type of what they are given
            features = features.to(torch.get_autocast_dtype(device))
        connectivity = self.lcenet(features.flatten(0, 1), columns)  # (2B, Q, 2)
        same_as_centre = torch.stack([same_as_end[:, end, end] for end in range(2)], dim=1)  # (B, 2, Q)
        edge, encoded = self.pcenet.edge_and_tokens(features.flatten(1, 2), columns)  # (B, 2), (B, 2Q, D + 2K)
        # Not cross_entropy(weight=…): its mean over the weights of a batch would differ between the ranks of a job.
        edge_losses = F.cross_entropy(edge, batch.same_identity, reduction="none")
        token = self.token_head(encoded)  # (B, 2, 2Q, 2)
        return {
            "connectivity_loss": F.cross_entropy(connectivity.flatten(0, -2), same_as_centre.flatten()),
            "edge_loss": (self.edge_weight[batch.same_identity] * edge_losses).mean(),
            "token_loss": F.cross_entropy(token.flatten(0, -2), same_as_end.flatten()),
        }


class TokenHead(nn.Module):
    """Training only: tell from PCENet's encoded tokens which of 2Q faces have the identity of each end.

    A pair gives LCENet 2Q labels, PCENet one, and it learns its training pairs by heart; this gives it 4Q more.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.end = nn.Linear(width, width)
        self.output = nn.Sequential(nn.PReLU(), nn.Linear(width, 2))
        self.token = nn.Linear(width, width, bias=False)

    def forward(self, encoded: Tensor) -> Tensor:
        """(B, 2Q, E), each end first of its Q → logits (B, 2, 2Q, 2) of each end and token."""
        ends = self.end(encoded[:, [0, encoded.shape[1] // 2]])  # (B, 2, E)
        return self.output(ends[:, :, None] + self.token(encoded)[:, None])
