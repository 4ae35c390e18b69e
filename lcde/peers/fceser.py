"""FC-ESER: the links of FC-ES, and those beyond its stops that a network accepts."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lcde.data.gallery import Gallery, KNNGraph
from lcde.errors import InputError
from lcde.methods.fces import FCESRule, edge_probability, listed, pairs_of
from lcde.methods.method import Clustering, Scores, timed
from lcde.models.base import MakeOptimizer, MakeScheduler, Neighbourhoods, PairModel, PairNetworks
from lcde.models.encoder import require_divisible
from lcde.models.pcenet import PCENet
from lcde.models.precision import as_dtype
from lcde.settings import Within, check_settings


@dataclass(frozen=True)
class AnsweredGraph(KNNGraph):
    """A kNN graph with neighbour-based edge probabilities as similarities, and answers of a model.

    Attributes
    ----------
    answers : (N, K) float32
        Probability by the model that both ends are of one identity; 0 where it was not asked.
    """

    answers: np.ndarray


@dataclass
class FCESERRule(FCESRule):
    """FC-ES, whose lists of neighbours also give those links after their ends that the model accepts.

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
        threshold, seconds = self.require_threshold(), dict[str, float]()
        with timed(seconds, "pairs"):
            graph = self._answered(gallery, scores, threshold)
        clustering = self.cut(gallery, graph, scores)
        return replace(clustering, seconds=seconds | clustering.seconds)

    def weigh(self, gallery: Gallery, scores: Scores | None) -> KNNGraph:
        """As `FCESRule.weigh`, with the answers that any of the `candidates` needs."""
        return self._answered(gallery, scores, float(self.candidates(gallery.graph).max()))

    def _answered(self, gallery: Gallery, scores: Scores | None, highest: float) -> AnsweredGraph:
        """The weighted graph, with the answers that thresholds up to the ``highest`` need."""
        assert scores is not None
        graph = super().weigh(gallery, scores)
        asked, answers = beyond_stop(graph, highest, self.recall), np.zeros_like(graph.similarities)
        answers[asked] = scores.edge_probability(pairs_of(graph, asked))
        return AnsweredGraph(graph.indices, graph.similarities, answers)

    def _edges(self, graph: KNNGraph, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        assert isinstance(graph, AnsweredGraph)
        edges, weights = super()._edges(graph, threshold)
        links = beyond_stop(graph, threshold, self.recall) & (graph.answers >= self.accept)
        return np.concatenate([edges, pairs_of(graph, links)]), np.concatenate([weights, graph.answers[links]])


def beyond_stop(graph: KNNGraph, threshold: float, recall: float) -> np.ndarray:
    """Which edges are not `listed` at the ``threshold``, but weigh ``recall`` or more: (N, K) bool."""
    beyond = ~listed(graph, threshold) & (graph.similarities >= recall)
    beyond[:, 0] = False
    return beyond


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
        weights = KNNGraph(graph.indices, edge_probability(graph))
        pairs = pairs_of(graph, beyond_stop(weights, self.threshold, self.recall))
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
