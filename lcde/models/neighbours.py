"""Models that tell which of a face's neighbours are of its identity."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcde.models.base import Neighbourhoods, PairModel, PairNetworks
from lcde.models.precision import as_dtype


class NeighbourNet(nn.Module):
    """Base class of networks that classify the neighbours of a face.

    ``forward`` gives logits (B, K) that each neighbour is of the identity of the first, from features (B, K, D).
    """

    def connectivity(self, neighbours: Tensor) -> Tensor:
        """Probabilities (B, K) float32."""
        return torch.sigmoid(self(neighbours).float())


class NeighbourModel(PairModel):
    """Base class of models that train a `NeighbourNet`; a subclass makes it.

    Attributes
    ----------
    network : NeighbourNet
    """

    mean_over_pairs = True

    network: NeighbourNet

    def networks(self, dtype: torch.dtype) -> PairNetworks:
        """Connectivity alone."""
        return PairNetworks(as_dtype(self.network, dtype).connectivity)

    def losses(self, batch: Neighbourhoods, training: bool) -> dict[str, Tensor]:
        """Binary cross-entropy over all neighbours of both ends."""
        logits = self.network(batch.features.flatten(0, 1))
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch.same_as_centre.float())
        return {"connectivity_loss": loss}
