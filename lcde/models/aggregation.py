"""A layer that reads each face with the mean of its neighbours, as graph convolutions of this field do."""

import torch
from torch import Tensor, nn


class Aggregation(nn.Module):
    """ReLU of a linear layer of a face's features beside the mean of its neighbours', weighted by similarity.

    The methods that use it also count faces that list this one among their neighbours; here a face's own K neighbours
    are all that is read, so that training needs no more than a batch of neighbourhoods.

    Parameters
    ----------
    feature_dim : int
        D
    width : int
        E
    """

    def __init__(self, feature_dim: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * feature_dim, width)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, neighbours: Tensor) -> Tensor:
        """(B, K, D) unit features, the face itself first → (B, E)."""
        return torch.relu(self.linear(torch.cat([neighbours[:, 0], weighted_mean(neighbours)], dim=-1)))


def weighted_mean(neighbours: Tensor) -> Tensor:
    """Mean (…, D) of the neighbours (…, K, D), weighted by the cosine to the first, the face itself, from 0 on."""
    weights = torch.relu(neighbours @ neighbours[..., 0, :, None])  # (…, K, 1)
    return (weights * neighbours).sum(dim=-2) / weights.sum(dim=-2).clamp(min=torch.finfo(weights.dtype).tiny)
