"""Graph convolutions of this field: layers that read each face with the mean of its neighbours."""

from itertools import pairwise

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
        self.linear = _linear(feature_dim, width)

    def forward(self, neighbours: Tensor) -> Tensor:
        """(B, K, D) unit features, the face itself first → (B, E)."""
        return torch.relu(self.linear(torch.cat([neighbours[:, 0], weighted_mean(neighbours)], dim=-1)))


def weighted_mean(neighbours: Tensor) -> Tensor:
    """Mean (…, D) of the neighbours (…, K, D), weighted by the cosine to the first, the face itself, from 0 on."""
    weights = torch.relu(neighbours @ neighbours[..., 0, :, None])  # (…, K, 1)
    return (weights * neighbours).sum(dim=-2) / weights.sum(dim=-2).clamp(min=torch.finfo(weights.dtype).tiny)


class NodeClassifier(nn.Module):
    """Four graph convolutions over small graphs, and a classifier of their nodes.

    Parameters
    ----------
    feature_dim : int
        D
    width : int
        Of the first two layers; that of the others is half of it.
    """

    def __init__(self, feature_dim: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.layers = nn.ModuleList(_linear(*widths) for widths in pairwise([feature_dim, width, width, half, half]))
        self.classifier = nn.Sequential(nn.Linear(half, half), nn.PReLU(half), nn.Linear(half, 2))

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        """(B, U, D) features and (B, U, U) weights of the means → logits (B, U, 2)."""
        for layer in self.layers:
            nodes = torch.relu(layer(torch.cat([nodes, adjacency @ nodes], dim=-1)))
        return self.classifier(nodes.flatten(0, 1)).unflatten(0, nodes.shape[:2])


def neighbours_among(indices: Tensor, nodes: Tensor, nearest: int) -> Tensor:
    """Which nodes of small graphs are neighbours in a kNN graph: (B, U, U) bool, symmetric.

    Parameters
    ----------
    indices : (N, K) int32
        Of the kNN graph.
    nodes : (B, U) int64
        Face numbers. Of those that occur twice, some are left out: they are for the caller to mask.
    nearest : int
        How many neighbours of each face, itself not counted, are looked up.
    """
    ordered, order = nodes.sort(dim=1, stable=True)
    neighbours = indices[:, 1 : 1 + nearest][nodes].long().flatten(1)
    place = torch.searchsorted(ordered, neighbours).clamp(max=nodes.shape[1] - 1)
    inside = ordered.gather(1, place) == neighbours
    # Neighbours that are no nodes go to an extra last column, which is dropped.
    column = order.gather(1, place).where(inside, nodes.shape[1]).view(*nodes.shape, -1)
    among = inside.new_zeros(*nodes.shape, nodes.shape[1] + 1).scatter_(2, column, True)[..., :-1]
    return among | among.mT


def _linear(feature_dim: int, width: int) -> nn.Linear:
    """A layer of features beside their mean."""
    linear = nn.Linear(2 * feature_dim, width)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
