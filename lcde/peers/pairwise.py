"""Pairwise classification, after Liu et al.: a classifier of each face with its first denser neighbour."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcde.clustering.edges import peak_links
from lcde.data.gallery import Gallery, KNNGraph
from lcde.methods.classical import ProbabilityRule
from lcde.methods.method import Scores
from lcde.models.aggregation import weighted_mean
from lcde.models.base import MakeOptimizer, MakeScheduler, Neighbourhoods, PairModel, PairNetworks


@dataclass
class PairwiseRule(ProbabilityRule):
    """Each face joins its nearest denser neighbour if the classifier takes both for one identity.

    An approximation: the paper's weights of ranks, context, network and training are not public.

    References
    ----------
    Liu, Qiu, Yan, Wei: Learn to cluster faces via pairwise classification. ICCV 2021.
    """

    needs_scores = True

    def weigh(self, gallery: Gallery, scores: Scores | None) -> KNNGraph:
        """The one edge by which each face may join, weighted by its probability."""
        assert scores is not None
        links = peak_links(gallery.graph, rank_weighted_density(gallery.graph.similarities))
        joins = links.indices[:, 1] != links.indices[:, 0]
        weights = np.zeros_like(links.similarities)
        weights[joins, 1] = scores.edge_probability(links.indices[joins].astype(np.int64))
        return KNNGraph(links.indices, weights)


def rank_weighted_density(similarities: np.ndarray) -> np.ndarray:
    """Density (N,): sum of ``similarities`` (N, K) to all but the face itself, that of rank r weighted by 1 - r / K."""
    k = similarities.shape[1]
    return similarities[:, 1:] @ (1 - np.arange(1, k) / k)


class PairwiseModel(PairModel):
    """A classifier of pairs of faces, each beside the weighted mean of its neighbours.

    Parameters
    ----------
    feature_dim, k : int
        D and K.
    width : int
        Of the first hidden layer; the second has half of it.
    optimizer, scheduler : callable, optional
        As of `PairModel`.
    """

    layer_hparams = ("width",)

    def __init__(
        self,
        feature_dim: int,
        k: int,
        width: int,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(feature_dim, k, optimizer, scheduler)
        # Without the norms, a small training part teaches the classifier little that holds for other people.
        first = nn.BatchNorm1d(4 * feature_dim), nn.Linear(4 * feature_dim, width), nn.BatchNorm1d(width), nn.GELU()
        second = nn.Linear(width, width // 2), nn.BatchNorm1d(width // 2), nn.GELU()
        self.classifier = nn.Sequential(*first, *second, nn.Linear(width // 2, 2))

    def forward(self, neighbours: Tensor) -> Tensor:
        """Logits (B, 2) of pairs, of which class 1 is the same identity, from (B, 2, K, D), each end first of its K."""
        ends = torch.stack([neighbours[:, :, 0], weighted_mean(neighbours)], dim=2)  # (B, 2, 2, D)
        return self.classifier(ends.flatten(1))

    def networks(self, dtype: torch.dtype) -> PairNetworks:
        """Edge probabilities alone; float32 alone."""
        return PairNetworks(edge_probability=self._edge_probability)

    def losses(self, batch: Neighbourhoods, training: bool) -> dict[str, Tensor]:
        """Cross-entropy of the pairs."""
        return {"edge_loss": F.cross_entropy(self(batch.features), batch.same_identity)}

    def _edge_probability(self, neighbours: Tensor, faces: Tensor) -> Tensor:
        ends = torch.stack(neighbours.chunk(2, dim=1), dim=1)  # (B, 2, K, D)
        return torch.softmax(self(ends).float(), dim=-1)[:, 1]
