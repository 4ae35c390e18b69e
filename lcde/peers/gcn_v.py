"""GCN-V: a confidence for each face, and a link from each face to its nearest more confident neighbour."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcde.clustering.edges import peak_links
from lcde.data.gallery import Gallery, KNNGraph
from lcde.methods.classical import ComponentsRule
from lcde.methods.method import Scores
from lcde.models.aggregation import Aggregation
from lcde.models.base import MakeOptimizer, MakeScheduler, Neighbourhoods, PairModel, PairNetworks


@dataclass
class GCNVRule(ComponentsRule):
    """Each face joins its nearest more confident neighbour, if that is similar enough.

    References
    ----------
    Yang, Chen, Zhan, Zhao, Loy, Lin: Learning to cluster faces via confidence and connectivity estimation. CVPR 2020.
    """

    needs_scores = True

    def weigh(self, gallery: Gallery, scores: Scores | None) -> KNNGraph:
        """The one edge by which each face may join, weighted by its similarity."""
        assert scores is not None
        return peak_links(gallery.graph, scores.embedding()[:, 0])


class GCNVModel(PairModel):
    """One layer of neighbourhood aggregation and a regression of each face's confidence.

    The confidence is the sum of the similarities to neighbours of the same identity, itself included, minus that to
    others, relative to K.

    Parameters
    ----------
    feature_dim, k : int
        D and K.
    width : int
        Of both layers.
    optimizer, scheduler : callable, optional
        As of `PairModel`.
    """

    layer_hparams = ("width",)
    mean_over_pairs = True

    def __init__(
        self,
        feature_dim: int,
        k: int,
        width: int,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(feature_dim, k, optimizer, scheduler)
        self.regression = nn.Sequential(
            Aggregation(feature_dim, width), nn.Linear(width, width), nn.PReLU(width), nn.Linear(width, 1)
        )

    def networks(self, dtype: torch.dtype) -> PairNetworks:
        """The confidence of each face; float32 alone."""
        return PairNetworks(embedding=self.regression)

    def losses(self, batch: Neighbourhoods, training: bool) -> dict[str, Tensor]:
        """Squared error of the confidence of both ends."""
        predicted = self.regression(batch.features.flatten(0, 1))[:, 0]
        return {"confidence_loss": confidence_loss(batch, predicted.float())}


def confidence_loss(batch: Neighbourhoods, predicted: Tensor) -> Tensor:
    """Squared error of the confidence (2B,) of both ends."""
    return F.mse_loss(predicted, confidence(batch.features.flatten(0, 1), batch.same_as_centre))


def confidence(neighbours: Tensor, same: Tensor) -> Tensor:
    """Confidence (B,) of faces from the features (B, K, D) of their neighbours and which are of their identity (B, K).

    The original divides by the largest absolute value of the training part in place of K.
    """
    similarities = (neighbours @ neighbours[:, 0, :, None])[..., 0]
    return (similarities * (2 * same - 1)).mean(dim=1)
