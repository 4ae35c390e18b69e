"""Chen et al.: probabilities of neighbours by a transformer, then density peaks of diffusion and transition."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lcde.clustering.edges import one_link
from lcde.clustering.shared_neighbours import sums_over_shared
from lcde.data.gallery import Gallery, KNNGraph
from lcde.errors import InputError
from lcde.methods.classical import CANDIDATES, ComponentsRule
from lcde.methods.method import Scores
from lcde.models.base import MakeOptimizer, MakeScheduler
from lcde.models.neighbours import NeighbourModel, NeighbourNet

NEAREST = 20  # neighbours that density counts
DIFFUSION, TRANSITION = 0.5, 0.05  # temperatures of the distance in both kinds of probability
TINY = 1e-5  # added to the sums that probabilities are divided by


@dataclass
class ChenRule(ComponentsRule):
    """Each face joins the nearest of its denser neighbours, if that is near enough.

    The distance of a neighbour is 1 minus its connectivity. Density (NDDe) is the probability with which a face's
    neighbours diffuse to it; the distance by which faces join (TPDi) compares where both ends go. The threshold is of 1
    minus the latter.

    References
    ----------
    Chen, Zhong, Chen, Shen, Huang, Wang, Liang, Sun: On mitigating hard clusters for face clustering. ECCV 2022.
    """

    needs_scores = True

    def weigh(self, gallery: Gallery, scores: Scores | None) -> KNNGraph:
        """The one edge by which each face may join, weighted by 1 minus the transition distance."""
        assert scores is not None
        indices, distance = gallery.graph.indices, 1 - scores.connectivity()
        density, nearness = diffusion_density(distance, indices), 1 - transition_distance(distance, indices)
        denser = density[indices] >= density[:, None]
        denser &= indices != np.arange(len(indices))[:, None]
        return one_link(KNNGraph(indices, nearness), np.where(denser, nearness, -1).argmax(axis=1))

    def candidates(self, graph: KNNGraph) -> np.ndarray:
        """Thresholds over the whole range."""
        return np.linspace(0.02, 0.94, CANDIDATES)


def diffusion_density(distance: np.ndarray, indices: np.ndarray, nearest: int = NEAREST) -> np.ndarray:
    """NDDe: sum (N,) of the probabilities with which faces diffuse to a face, itself included.

    Parameters
    ----------
    distance : (N, K) float32
    indices : (N, K) int32
    nearest : int
        Neighbours of least distance to which each face diffuses.
    """
    order = np.argsort(distance, axis=1, kind="stable")[:, :nearest]
    step = np.exp(-np.take_along_axis(distance, order, axis=1) / DIFFUSION)
    step /= step.sum(axis=1, keepdims=True) + TINY
    return np.bincount(np.take_along_axis(indices, order, axis=1).ravel(), step.ravel(), len(indices))


def transition_distance(distance: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """TPDi of each edge: (N, K) float32, 1 minus the Bhattacharyya coefficient of where both ends go.

    Parameters
    ----------
    distance : (N, K) float32
    indices : (N, K) int32
    """
    step = np.exp(-distance / TRANSITION)
    step = np.sqrt(step / (step.sum(axis=1, keepdims=True) + TINY))
    return 1 - sums_over_shared(step, step, indices)


class ChenModel(NeighbourModel):
    """One transformer layer over the neighbourhood of a face, and a classifier of each neighbour.

    Parameters
    ----------
    feature_dim, k : int
        D and K.
    nhead : int
        Attention heads, a divisor of D.
    dim_feedforward : int
    dropout : float
    optimizer, scheduler : callable, optional
        As of `PairModel`.

    Raises
    ------
    InputError
        Where ``nhead`` does not divide D, or D is odd.
    """

    layer_hparams = ("nhead", "dim_feedforward")

    def __init__(
        self,
        feature_dim: int,
        k: int,
        nhead: int,
        dim_feedforward: int,
        dropout: float,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(feature_dim, k, optimizer, scheduler)
        if nhead < 1 or feature_dim % nhead or feature_dim % 2:
            reason = f"model=chen needs an even dataset.feature_dim that model.nhead={nhead} divides"
            raise InputError(f"{reason}; it is {feature_dim}.")
        self.network = NeighbourClassifier(feature_dim, k, nhead, dim_feedforward, dropout)


class NeighbourClassifier(NeighbourNet):
    """The network of `ChenModel`: sinusoidal positions in queries and keys, one layer with norms after its branches."""

    position: Tensor

    def __init__(self, width: int, k: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, nhead, dropout, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, dim_feedforward), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim_feedforward, width)
        )
        self.norms, self.dropout = nn.ModuleList(nn.LayerNorm(width) for _ in range(2)), nn.Dropout(dropout)
        self.classifier = nn.Sequential(
            nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 1)
        )
        self.register_buffer("position", sinusoids(k, width), persistent=False)

    def forward(self, neighbours: Tensor) -> Tensor:
        """Logits (B, K) that each neighbour is of the identity of the first, from features (B, K, D)."""
        x = neighbours.to(self.position.dtype)
        placed = x + self.position
        x = self.norms[0](x + self.dropout(self.attention(placed, placed, x, need_weights=False)[0]))
        x = self.norms[1](x + self.dropout(self.feed_forward(x)))
        hidden, output = self.classifier[:-1](torch.cat([x[:, :1].expand_as(x), x], dim=-1)), self.classifier[-1]
        return output(hidden.to(output.weight.dtype))[..., 0]


def sinusoids(positions: int, width: int) -> Tensor:
    """Sines and cosines (positions, width) of Vaswani et al. 2017."""
    angle = torch.arange(positions)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
