"""L-GCN: graph convolutions over a face's neighbours and theirs tell which neighbours are of its identity."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcde.clustering.density import symmetrise
from lcde.data.gallery import Gallery, KNNGraph
from lcde.errors import InputError
from lcde.methods.cdp import CDPRule
from lcde.methods.classical import CANDIDATES
from lcde.methods.method import Scores
from lcde.models.aggregation import NodeClassifier, neighbours_among
from lcde.models.base import DeviceGraph, MakeOptimizer, MakeScheduler, Neighbourhoods, PairModel, PairNetworks
from lcde.models.tokens import distinct, take

FACES_AT_A_TIME = 64  # whose subgraphs are scored together: each has hundreds of nodes


@dataclass
class LGCNRule(CDPRule):
    """As CDP, of edges weighted by their connectivity in place of their similarity.

    References
    ----------
    Wang, Zheng, Li, Wang: Linkage based face clustering via graph convolution network. CVPR 2019.
    """

    needs_scores = True

    def weigh(self, gallery: Gallery, scores: Scores | None) -> KNNGraph:
        """Edges weighted by the mean of the connectivities of both directions."""
        assert scores is not None
        indices = gallery.graph.indices
        return KNNGraph(indices, symmetrise(scores.connectivity(), indices))

    def candidates(self, graph: KNNGraph) -> np.ndarray:
        """Thresholds from the published 0 on, ever closer to each other towards 1, as those of the rounds are."""
        return 1 - np.geomspace(1, 0.002, CANDIDATES)


class Subgraph(NamedTuple):
    """Small graphs of the faces around B centres: the instance pivot subgraphs.

    Attributes
    ----------
    nodes : (B, U) int64
        Face numbers, each once; the centre again where a subgraph has fewer than U.
    real : (B, U) bool
        False for these repeats.
    neighbours : (B, K - 1) int64
        Which of the nodes are the neighbours of the centre, nearest first.
    adjacency : (B, U, U) float32
        Rows of the nodes that are connected sum to 1; all others are 0.
    """

    nodes: Tensor
    real: Tensor
    neighbours: Tensor
    adjacency: Tensor


def pivot_subgraph(indices: Tensor, centres: Tensor, second_hop: int, nearest: int) -> Subgraph:
    """The subgraphs of ``centres``: their neighbours and the nearest ones of each of these.

    Parameters
    ----------
    indices : (N, K) int32
        Of the kNN graph.
    centres : (B,) int64
    second_hop : int
        Neighbours of each neighbour that belong to the subgraph.
    nearest : int
        A node is connected to those of so many nearest neighbours that are nodes, and to those that it is one of.
    """
    one_hop = indices[centres].long()
    two_hops = indices[:, 1 : 1 + second_hop][one_hop[:, 1:]].long()
    faces = torch.cat([one_hop, two_hops.flatten(1)], dim=1)
    positions, copies, number = distinct(faces)
    real = copies > 0
    nodes = faces.gather(1, positions).where(real, centres[:, None])
    connected = neighbours_among(indices, nodes, nearest) & real[:, :, None] & real[:, None]
    adjacency = connected / connected.sum(dim=2, keepdim=True).clamp(min=1)
    return Subgraph(nodes, real, number[:, 1 : one_hop.shape[1]], adjacency)


class LGCNModel(PairModel):
    """Graph convolutions over the subgraph around each face, and a classifier of its neighbours.

    Parameters
    ----------
    feature_dim, k : int
        D and K.
    second_hop : int
        Neighbours of each neighbour that belong to the subgraph.
    nearest : int
        A node of the subgraph is connected to those of so many nearest neighbours that belong to it.
    width : int
        Of the first two layers; that of the others is half of it.
    optimizer, scheduler : callable, optional
        As of `PairModel`.

    Raises
    ------
    InputError
        Where ``second_hop`` is negative or ``nearest`` not positive.
    """

    layer_hparams = ("width",)

    def __init__(
        self,
        feature_dim: int,
        k: int,
        second_hop: int,
        nearest: int,
        width: int,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(feature_dim, k, optimizer, scheduler)
        if second_hop < 0 or nearest < 1:
            found = f"model.second_hop={second_hop} and model.nearest={nearest}"
            raise InputError(f"{found} count neighbours: set 0 or more, and 1 or more.")
        self.second_hop, self.nearest = second_hop, nearest
        self.norm, self.network = nn.BatchNorm1d(feature_dim, affine=False), NodeClassifier(feature_dim, width)

    def networks(self, dtype: torch.dtype) -> PairNetworks:
        """Connectivity alone; float32 alone."""
        return PairNetworks(connectivity_in_graph=self._connectivity)

    def losses(self, batch: Neighbourhoods, training: bool) -> dict[str, Tensor]:
        """Cross-entropy over the neighbours of both ends."""
        logits = self(batch.graph, batch.pairs.flatten())
        return {"connectivity_loss": F.cross_entropy(logits.flatten(0, 1), batch.same_as_centre[:, 1:].flatten())}

    def forward(self, graph: DeviceGraph, centres: Tensor) -> Tensor:
        """Logits (B, K - 1, 2) of the neighbours of ``centres`` (B,), themselves not counted."""
        nodes, real, neighbours, adjacency = pivot_subgraph(graph.indices, centres, self.second_hop, self.nearest)
        x = graph.features_of(nodes) - graph.features_of(centres)[:, None]
        x[real] = self.norm(x[real])  # repeats would count in its mean and variance
        return take(self.network(x, adjacency), neighbours)

    def _connectivity(self, graph: DeviceGraph, centres: Tensor) -> Tensor:
        """Probabilities (B, K); a face is connected to itself."""
        logits = torch.cat([self(graph, some) for some in torch.split(centres, FACES_AT_A_TIME)])
        return F.pad(torch.softmax(logits.float(), dim=-1)[..., 1], (1, 0), value=1.0)
