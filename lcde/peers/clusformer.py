"""Clusformer: a transformer tells which neighbours are of a face's identity; their similarities are its confidence."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from lcde.clustering.edges import peak_links
from lcde.data.gallery import Gallery, KNNGraph
from lcde.errors import InputError
from lcde.methods.classical import ComponentsRule
from lcde.methods.method import Scores
from lcde.models.base import MakeOptimizer, MakeScheduler
from lcde.models.neighbours import NeighbourModel, NeighbourNet
from lcde.models.tokens import tokens
from lcde.settings import Within


@dataclass
class ClusformerRule(ComponentsRule):
    """Each face joins its nearest more confident neighbour, if that is similar enough.

    The confidence is the sum of the similarities to neighbours that the model takes for the same identity, minus that
    to others.

    Attributes
    ----------
    accept : float
        Neighbours of more than this connectivity count as the same identity.

    References
    ----------
    Nguyen, Bui, Duong, Bui, Luu: Clusformer: a transformer based clustering approach to unsupervised large-scale face
    and visual landmark recognition. CVPR 2021.
    """

    accept: Annotated[float, Within(0, 1)] = 0.9

    needs_scores = True

    def weigh(self, gallery: Gallery, scores: Scores | None) -> KNNGraph:
        """The one edge by which each face may join, weighted by its similarity."""
        assert scores is not None
        graph = gallery.graph
        # The original divides all by the largest, a positive number, which leaves their order.
        confidence = np.where(scores.connectivity() > self.accept, graph.similarities, -graph.similarities).sum(axis=1)
        return peak_links(graph, confidence)


class ClusformerModel(NeighbourModel):
    """An encoder over the neighbours of a face, and a decoder that answers for each of them.

    Parameters
    ----------
    feature_dim, k : int
        D and K.
    num_encoder_layers, num_decoder_layers : int
    nhead : int
        Attention heads, a divisor of D + K.
    dim_feedforward : int
    dropout : float
    optimizer, scheduler : callable, optional
        As of `PairModel`.

    Raises
    ------
    InputError
        Where ``nhead`` does not divide D + K.
    """

    layer_hparams = ("num_encoder_layers", "num_decoder_layers", "nhead", "dim_feedforward")

    def __init__(
        self,
        feature_dim: int,
        k: int,
        num_encoder_layers: int,
        num_decoder_layers: int,
        nhead: int,
        dim_feedforward: int,
        dropout: float,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(feature_dim, k, optimizer, scheduler)
        width = feature_dim + k
        if nhead < 1 or width % nhead:
            divisors = [heads for heads in range(1, width + 1) if width % heads == 0]
            nearest = min(divisors, key=lambda heads: abs(heads - nhead))
            sizes = f"dataset.feature_dim={feature_dim} and dataset.k={k}"
            raise InputError(f"model.nhead={nhead} must divide the sum of {sizes}; model.nhead={nearest} does.")
        layers = num_encoder_layers, num_decoder_layers, dim_feedforward, dropout
        self.network = QueryTransformer(k, nn.Transformer(width, nhead, *layers, batch_first=True))


class QueryTransformer(NeighbourNet):
    """The network of `ClusformerModel`: learned query r asks about the neighbour of rank r.

    Tokens carry no position. The similarity of a neighbour to itself, 1 at place r of its token, tells its rank.
    """

    def __init__(self, k: int, transformer: nn.Transformer) -> None:
        super().__init__()
        self.transformer = transformer
        self.queries = nn.Parameter(torch.rand(k, transformer.d_model))
        self.classifier = nn.Sequential(nn.Linear(transformer.d_model, 1))

    def forward(self, neighbours: Tensor) -> Tensor:
        """Logits (B, K) that each neighbour is of the identity of the first, from features (B, K, D)."""
        x = tokens(neighbours).to(self.queries.dtype)
        answers = self.transformer(x, self.queries.expand(len(x), -1, -1))
        output = self.classifier[0]
        return output(answers.to(output.weight.dtype))[..., 0]
