"""A trainable method of one's own: the probability of one identity is a logistic function of the similarity."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcde.models.base import Neighbourhoods, PairModel, PairNetworks


class SimilarityModel(PairModel):
    """Learns at which similarity two neighbours are of one identity."""

    def __init__(self, feature_dim, k, slope, optimizer=None, scheduler=None):
        super().__init__(feature_dim, k, optimizer, scheduler)
        self.logistic = nn.Linear(1, 1)
        nn.init.constant_(self.logistic.weight, slope)

    def losses(self, batch: Neighbourhoods, training: bool) -> dict[str, Tensor]:
        neighbours, same = batch.features.flatten(0, 1), batch.same_as_end[:, [0, 1], [0, 1]].flatten(0, 1)
        return {"similarity_loss": F.binary_cross_entropy_with_logits(self._logits(neighbours), same.float())}

    def networks(self, dtype: torch.dtype) -> PairNetworks:
        return PairNetworks(lambda neighbours: torch.sigmoid(self._logits(neighbours.float())), None)

    def _logits(self, neighbours: Tensor) -> Tensor:
        """Neighbours (B, K, D), the face itself first -> (B, K)."""
        similarity = neighbours @ neighbours[:, 0, :, None]
        return self.logistic(similarity)[..., 0]
