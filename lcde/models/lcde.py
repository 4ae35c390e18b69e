"""The model of LCDE: LCENet and PCENet with their losses, trained in one run."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcde.errors import InputError
from lcde.models.base import MakeOptimizer, MakeScheduler, Neighbourhoods, PairModel, PairNetworks
from lcde.models.encoder import require_divisible
from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet
from lcde.models.precision import as_dtype


class LCDEModel(PairModel):
    """LCENet and PCENet, trained on the same pairs.

    The networks' tokens have widths D + K and D + 2K, which ``nhead`` must divide: both ``feature_dim`` and ``k`` must
    be multiples of it.

    Parameters
    ----------
    feature_dim, k : int
        D and K.
    num_layers : int or two ints
        Encoder layers of both networks, or of LCENet and of PCENet.
    nhead : int
        Attention heads.
    dim_feedforward : int or two ints, optional
        Width of the encoders' feed-forward layers, of both networks or of each; None takes 4 D, the published 1024 at
        D = 256.
    dropout : float
    neighbours_per_end : int
        Neighbours of each end that a training step reads, the end itself counted, drawn anew for each step [1]_.
    negative_weight : float
        Weight of impostor pairs in PCENet's loss: one wrong edge merges two clusters, while other edges mostly make up
        for a missing one.
    optimizer, scheduler : callable, optional
        As of `PairModel`.

    Raises
    ------
    InputError
        Where ``nhead`` does not divide D + K and D + 2K, and for values out of range.

    References
    ----------
    .. [1] Liu et al., "PatchDropout: Economizing Vision Transformers Using Patch Dropout", 2022, does so with images.
    """

    mean_over_pairs = True

    edge_weight: Tensor

    def __init__(
        self,
        feature_dim: int,
        k: int,
        num_layers: int | Sequence[int],
        nhead: int,
        dim_feedforward: int | Sequence[int] | None,
        dropout: float,
        neighbours_per_end: int,
        negative_weight: float,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(feature_dim, k, optimizer, scheduler)
        require_divisible(feature_dim, k, nhead)
        if neighbours_per_end < 2:
            raise InputError(f"model.neighbours_per_end={neighbours_per_end} must be 2 or more: it counts the end too.")
        if not 0 <= dropout < 1:
            raise InputError(f"model.dropout={dropout} must lie in [0, 1).")
        if not 0 < negative_weight < math.inf:
            raise InputError(f"model.negative_weight={negative_weight} must be a positive number.")
        self.nhead, self.neighbours_per_end = nhead, neighbours_per_end
        self.layers = _each("num_layers", num_layers)
        self.widths = _each("dim_feedforward", 4 * feature_dim if dim_feedforward is None else dim_feedforward)
        self.lcenet = LCENet(feature_dim, k, self.layers[0], nhead, self.widths[0], dropout)
        self.pcenet = PCENet(feature_dim, k, self.layers[1], nhead, self.widths[1], dropout)
        self.token_head = TokenHead(feature_dim + 2 * k)
        self.register_buffer("edge_weight", torch.tensor([negative_weight, 1.0]), persistent=False)

    def networks(self, dtype: torch.dtype) -> PairNetworks:
        """LCENet's connectivity and PCENet's edge probability; copies unless ``dtype`` is float32."""
        return PairNetworks(as_dtype(self.lcenet, dtype).connectivity, as_dtype(self.pcenet, dtype).edge_probability)

    def layer_settings(self) -> dict[str, Any]:
        """Depth, heads and feed-forward width, one value where both networks have the same."""
        layers, widths = (both[0] if both[0] == both[1] else both for both in (self.layers, self.widths))
        return {"num_layers": layers, "nhead": self.nhead, "dim_feedforward": widths}

    def losses(self, batch: Neighbourhoods, training: bool) -> dict[str, Tensor]:
        """Cross-entropies: LCENet over neighbours of both ends, PCENet over the pairs and over its tokens.

        Training reads ``neighbours_per_end`` neighbours of each end, validation all.
        """
        if not training:
            return self._losses(batch)
        # Of epoch and step alone: the processes of a job read the same columns, as one process does.
        others = np.random.default_rng([self.current_epoch, self.batch_idx]).permutation(self.k - 1) + 1
        columns = np.append(0, others[: self.neighbours_per_end - 1])
        return self._losses(batch, torch.from_numpy(columns).to(self.device))

    def _losses(self, batch: Neighbourhoods, columns: Tensor | None = None) -> dict[str, Tensor]:
        """Losses from the neighbours in ``columns`` (Q,), of which the first is 0; from all, Q = K, without it."""
        if columns is not None:
            batch = batch._replace(same_as_end=batch.same_as_end[..., columns])  # (B, 2, 2, Q)
        features, device = batch.features, batch.features.device.type
        if torch.is_autocast_enabled(device):  # the residual stream of the networks has the type of their input
            features = features.to(torch.get_autocast_dtype(device))
        connectivity = self.lcenet(features.flatten(0, 1), columns)  # (2B, Q, 2)
        edge, encoded = self.pcenet.edge_and_tokens(features.flatten(1, 2), columns)  # (B, 2), (B, 2Q, D + 2K)
        # Not cross_entropy(weight=…): its mean over the weights of a batch would differ between the ranks of a job.
        edge_losses = F.cross_entropy(edge, batch.same_identity, reduction="none")
        token = self.token_head(encoded)  # (B, 2, 2Q, 2)
        return {
            "connectivity_loss": F.cross_entropy(connectivity.flatten(0, -2), batch.same_as_centre.flatten()),
            "edge_loss": (self.edge_weight[batch.same_identity] * edge_losses).mean(),
            "token_loss": F.cross_entropy(token.flatten(0, -2), batch.same_as_end.flatten()),
        }


class TokenHead(nn.Module):
    """Training only: classify PCENet's encoded tokens by whether they have the identity of each end.

    A pair gives LCENet 2Q labels but PCENet one, which lets PCENet memorise its training pairs; this gives it 4Q more.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.end = nn.Linear(width, width)
        self.output = nn.Sequential(nn.PReLU(), nn.Linear(width, 2))
        self.token = nn.Linear(width, width, bias=False)

    def forward(self, encoded: Tensor) -> Tensor:
        """Logits of each end and token: (B, 2Q, E), each end first of its Q → (B, 2, 2Q, 2)."""
        ends = self.end(encoded[:, [0, encoded.shape[1] // 2]])  # (B, 2, E)
        return self.output(ends[:, :, None] + self.token(encoded)[:, None])


def _each(key: str, value: int | Sequence[int]) -> list[int]:
    """A setting of LCENet and of PCENet."""
    each = [value, value] if isinstance(value, int) else list(value)
    if len(each) != 2 or min(each) < 1:
        raise InputError(f"model.{key}={value} must be a number of at least 1, or two: of LCENet and of PCENet.")
    return each
