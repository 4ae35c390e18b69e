"""GCN-V+E: the confidences of GCN-V, and graph convolutions that choose among a face's more confident neighbours."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lcde.clustering.edges import one_link
from lcde.data.gallery import Gallery, KNNGraph, row_blocks
from lcde.errors import InputError
from lcde.methods.method import Scores
from lcde.models.aggregation import NodeClassifier, neighbours_among
from lcde.models.base import DeviceGraph, MakeOptimizer, MakeScheduler, Neighbourhoods, PairNetworks
from lcde.peers.gcn_v import GCNVModel, GCNVRule, confidence_loss
from lcde.settings import Within


@dataclass
class GCNVERule(GCNVRule):
    """Each face joins the most probable of its more confident neighbours, if their embeddings are similar enough.

    Attributes
    ----------
    unsure : float
        Share of the faces, those of least confidence, that join the nearest more confident neighbour instead.

    References
    ----------
    Yang, Chen, Zhan, Zhao, Loy, Lin: Learning to cluster faces via confidence and connectivity estimation. CVPR 2020.
    """

    unsure: Annotated[float, Within(0, 1)] = 0.8

    def weigh(self, gallery: Gallery, scores: Scores | None) -> KNNGraph:
        """The one edge by which each face may join, weighted by the cosine of the embeddings."""
        assert scores is not None
        indices, values, probability = gallery.graph.indices, scores.embedding(), scores.connectivity()
        confidence, embedding = values[:, 0], values[:, 1:]
        unsure = confidence < np.quantile(confidence, self.unsure)
        best = np.empty(len(indices), dtype=np.int64)
        for rows in row_blocks(len(indices)):
            candidates = confidence[indices[rows]] > confidence[rows, None]
            preferred = np.where(unsure[rows, None], candidates, np.where(candidates, probability[rows], -1))
            best[rows] = preferred.argmax(axis=1)  # 0, the face itself, where there is no candidate
        links = one_link(gallery.graph, best)
        cosine = np.einsum("ne,ne->n", embedding, embedding[links.indices[:, 1]])
        links.similarities[:, 1] = np.where(best > 0, cosine, 0)
        return links


class GCNVEModel(GCNVModel):
    """GCN-V, and a classifier of a face's more confident neighbours by the hidden layer of GCN-V.

    Both learn at once; the classifier's loss does not reach GCN-V.

    Parameters
    ----------
    feature_dim, k : int
        D and K.
    width : int
        Of both layers of GCN-V and of the classifier's first two; its others have half of it.
    unsure : float
        Share of the faces of a step, those of least confidence, that the classifier does not learn from.
    optimizer, scheduler : callable, optional
        As of `PairModel`.

    Raises
    ------
    InputError
        Where ``unsure`` is not from 0 to 1.
    """

    def __init__(
        self,
        feature_dim: int,
        k: int,
        width: int,
        unsure: float,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(feature_dim, k, width, optimizer, scheduler)
        if not 0 <= unsure <= 1:
            raise InputError(f"model.unsure={unsure} is a share of the faces; set a number from 0 to 1.")
        self.unsure, self.classifier = unsure, NodeClassifier(width, width)

    def networks(self, dtype: torch.dtype) -> PairNetworks:
        """Confidence and embedding of each face, and connectivity of these; float32 alone."""
        return PairNetworks(embedding=self.embed, connectivity_in_graph=self._connectivity)

    def losses(self, batch: Neighbourhoods, training: bool) -> dict[str, Tensor]:
        """The loss of GCN-V, and cross-entropy over the candidates of the ends of most confidence."""
        confidence = self.embed(batch.features.flatten(0, 1))[:, 0].float()
        sure = confidence >= confidence.detach().quantile(self.unsure)
        neighbours = batch.graph.indices[batch.pairs.flatten()[sure]].long()
        with torch.no_grad():
            around = batch.graph.features_of(batch.graph.indices[neighbours])  # (S, K, K, D)
            values = self.embed(around.flatten(0, 1)).view(*neighbours.shape, -1)
        logits, candidates = self._classify(batch.graph.indices, neighbours, values)
        asked = candidates & (candidates.sum(dim=1, keepdim=True) > 1)
        total = F.cross_entropy(logits[asked], batch.same_as_centre[sure][asked], reduction="sum")
        return {
            "confidence_loss": confidence_loss(batch, confidence),
            "connectivity_loss": total / asked.sum().clamp(min=1),
        }

    def embed(self, neighbours: Tensor) -> Tensor:
        """(B, K, D) features of faces' neighbours → (B, 1 + width): confidence, and hidden layer of unit length."""
        aggregation, regression = self.regression[0], self.regression[1:]
        hidden = aggregation(neighbours)
        return torch.cat([regression(hidden), F.normalize(hidden, dim=-1)], dim=-1)

    def _classify(self, indices: Tensor, neighbours: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Classify neighbours (B, K) of ``values`` (B, K, 1 + width): logits (B, K, 2), and which are candidates."""
        confidence, embedding = values[..., 0], values[..., 1:]
        candidates = confidence > confidence[:, :1]
        linked = neighbours_among(indices, neighbours, self.k) & candidates[:, None] & candidates[:, :, None]
        weights = torch.relu(embedding @ embedding.mT) * linked + torch.eye(self.k, device=values.device)
        return self.classifier(embedding - embedding[:, :1], weights / weights.sum(dim=2, keepdim=True)), candidates

    def _connectivity(self, graph: DeviceGraph, faces: Tensor) -> Tensor:
        """Probabilities (B, K) of more confident neighbours, 0 for others."""
        neighbours = graph.indices[faces].long()
        logits, candidates = self._classify(graph.indices, neighbours, graph.features_of(neighbours))
        return torch.softmax(logits.float(), dim=-1)[..., 1] * candidates
