"""FC-ESER: the links of FC-ES, and those beyond its stops that a network accepts."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lcde.data.gallery import Gallery, KNNGraph
from lcde.errors import InputError
from lcde.methods.fces import FCESRule, edge_probability
from lcde.methods.method import Clustering, Details, Scores, timed
from lcde.models.base import MakeOptimizer, MakeScheduler, Neighbourhoods, PairModel, PairNetworks
from lcde.models.encoder import require_divisible
from lcde.models.pcenet import PCENet
from lcde.models.precision import as_dtype
from lcde.settings import Within, check_settings


@dataclass
class FCESERRule(FCESRule):
    """FC-ES, whose lists of neighbours also give those links after their ends that the model accepts.

    The threshold is chosen without the model, as that of FC-ES: of every other one, the model would be asked anew.

    Attributes
    ----------
    recall : float
        The model is asked about pairs of this neighbour-based edge probability or more.
    accept : float
        Least probability of a link by the model, which is also its weight.

    References
    ----------
    Liu: Face clustering via early stopping and edge recall. arXiv:2408.13431, 2024.
    """

    recall: Annotated[float, Within(0, 1)] = 0.12
    accept: Annotated[float, Within(0, 1)] = 0.6

    needs_scores = True
    choice = "fceser"

    def __call__(self, gallery: Gallery, scores: Scores | None = None) -> Clustering:
        """Cluster ``gallery``; the details are those of FC-ES."""
        assert scores is not None
        threshold, seconds = self.require_threshold(), dict[str, float]()
        with timed(seconds, "weights"):
            graph = self.weigh(gallery, scores)
        with timed(seconds, "edges"):
            edges, weights = self._edges(graph, threshold)
        with timed(seconds, "pairs"):
            pairs = beyond_stop(graph, threshold, self.recall)
            probability = scores.edge_probability(pairs)
        with timed(seconds, "components"):
            accepted = probability >= self.accept
            edges = np.concatenate([edges, pairs[accepted]])
            labels = self._labels(gallery, edges, np.concatenate([weights, probability[accepted]]))
        return Clustering(labels, seconds, Details(similarity_threshold=threshold))


def beyond_stop(graph: KNNGraph, threshold: float, recall: float) -> np.ndarray:
    """Edges (M, 2) int64 from the first one of each row below ``threshold``, of weight ``recall`` or more."""
    weights = graph.similarities[:, 1:]
    rows, columns = np.nonzero(~np.logical_and.accumulate(weights >= threshold, axis=1) & (weights >= recall))
    return np.stack([rows, graph.indices[rows, columns + 1]], axis=1).astype(np.int64)


@dataclass(frozen=True)
class PairsBeyondStop:
    """A sampler of the pairs that the rule asks about.

    Attributes
    ----------
    threshold, recall : float
        Of the rule.
    pairs_per_face : float
        Pairs per face and epoch.
    """

    threshold: Annotated[float, Within(-1, 1)]
    recall: Annotated[float, Within(0, 1)]
    pairs_per_face: Annotated[float, Within(0)]

    reads_connectivity: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self, "pairs.")

    def __call__(self, graph: KNNGraph, connectivity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """As `lcde.training.pairs.PairSampler`."""
        pairs = beyond_stop(KNNGraph(graph.indices, edge_probability(graph)), self.threshold, self.recall)
        if not len(pairs):
            raise InputError(f"no pair after a stop reaches pairs.recall={self.recall}; lower it.")
        return pairs[rng.integers(len(pairs), size=max(1, round(self.pairs_per_face * len(graph))))]


class FCESERModel(PairModel):
    """PCENet alone, trained on pairs.

    Parameters
    ----------
    feature_dim, k : int
        D and K.
    num_layers, nhead, dim_feedforward : int
        Of the encoder.
    dropout : float
    optimizer, scheduler : callable, optional
        As of `PairModel`.

    Raises
    ------
    InputError
        Where ``nhead`` does not divide D + 2K.
    """

    layer_hparams = ("num_layers", "nhead", "dim_feedforward")
    mean_over_pairs = True

    def __init__(
        self,
        feature_dim: int,
        k: int,
        num_layers: int,
        nhead: int,
        dim_feedforward: int,
        dropout: float,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(feature_dim, k, optimizer, scheduler)
        require_divisible(feature_dim, k, nhead)
        self.pcenet = PCENet(feature_dim, k, num_layers, nhead, dim_feedforward, dropout)

    def networks(self, dtype: torch.dtype) -> PairNetworks:
        """Edge probabilities alone."""
        return PairNetworks(edge_probability=as_dtype(self.pcenet, dtype).edge_probability)

    def losses(self, batch: Neighbourhoods, training: bool) -> dict[str, Tensor]:
        """Cross-entropy of the pairs."""
        return {"edge_loss": F.cross_entropy(self.pcenet(batch.features.flatten(1, 2)), batch.same_identity)}
