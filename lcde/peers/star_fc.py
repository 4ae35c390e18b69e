"""STAR-FC: edges classified by features with their neighbours' mean, then pruned by the neighbours that ends share."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional as F

from lcde.clustering.edges import edges_above
from lcde.data.gallery import Gallery, KNNGraph, row_blocks
from lcde.methods.classical import ProbabilityRule
from lcde.methods.method import Scores
from lcde.models.aggregation import Aggregation
from lcde.models.base import MakeOptimizer, MakeScheduler, Neighbourhoods, PairModel, PairNetworks
from lcde.settings import Within


@dataclass
class StarFCRule(ProbabilityRule):
    """Connected components of the edges of enough probability whose ends are intimate.

    The intimacy of an edge is the number of paths of two such edges that also lead from one end to the other, relative
    to the edges of either end, whichever gives more.

    Attributes
    ----------
    intimacy : float
        Least intimacy.
    count_ends : bool
        Whether a face counts as its own neighbour; if not, as in the paper, clusters of fewer than five faces fall
        apart.

    References
    ----------
    Shen, Li, Zhu, Huang, Du, Lu, Zhou: Structure-aware face clustering on a large-scale graph with 10^7 nodes.
    CVPR 2021.
    """

    intimacy: Annotated[float, Within(0, 1)] = 0.72
    count_ends: bool = True

    needs_scores = True

    def weigh(self, gallery: Gallery, scores: Scores | None) -> KNNGraph:
        """Edges weighted by their probability."""
        assert scores is not None
        return KNNGraph(gallery.graph.indices, scores.connectivity())

    def _edges(self, graph: KNNGraph, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        edges, weights = edges_above(graph, threshold)
        intimate = intimacy(edges, len(graph), self.count_ends) > self.intimacy
        return edges[intimate], weights[intimate]


def intimacy(edges: np.ndarray, num_faces: int, count_ends: bool) -> np.ndarray:
    """Node intimacy (M,) of directed ``edges`` (M, 2) int64, ordered by their first face.

    A²_ij divided by the number of edges of i, or of j if that is less, where A holds the edges, and those from each
    face to itself if ``count_ends``.
    """
    ones = np.ones(len(edges), dtype=np.float32)
    adjacency = csr_matrix((ones, edges.T), shape=(num_faces, num_faces))
    if count_ends:
        adjacency.setdiag(1)
        adjacency = adjacency.tocsr()
    degree = np.diff(adjacency.indptr)
    paths = np.empty(len(edges), dtype=np.float32)
    for rows in row_blocks(num_faces):
        first, last = np.searchsorted(edges[:, 0], [rows.start, rows.stop])
        faces, others = edges[first:last].T
        paths[first:last] = np.asarray((adjacency[rows] @ adjacency)[faces - rows.start, others]).ravel()
    return paths / np.maximum(degree[edges].min(axis=1), 1)


class StarFCModel(PairModel):
    """One layer of neighbourhood aggregation, and a classifier of edges.

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
        self.aggregation = Aggregation(feature_dim, width)
        self.classifier = nn.Sequential(nn.Linear(2 * width, width), nn.PReLU(width), nn.Linear(width, 2))

    def networks(self, dtype: torch.dtype) -> PairNetworks:
        """Faces embedded with their neighbourhoods, and connectivity of these; float32 alone."""
        return PairNetworks(self._connectivity, embedding=self.aggregation)

    def losses(self, batch: Neighbourhoods, training: bool) -> dict[str, Tensor]:
        """Cross-entropy of the pairs."""
        ends = self.aggregation(batch.features.flatten(0, 1)).unflatten(0, (-1, 2))
        return {"edge_loss": F.cross_entropy(self.classifier(ends.flatten(1)), batch.same_identity)}

    def _connectivity(self, embedded: Tensor) -> Tensor:
        """Probabilities (B, K) of the edges from the first of each K faces, (B, K, width), to all of them."""
        hidden, activation, output = self.classifier
        assert isinstance(hidden, nn.Linear)
        centre, neighbour = hidden.weight.chunk(2, dim=1)  # each face's half of the product, once
        x = embedded @ neighbour.T + (embedded[:, :1] @ centre.T + hidden.bias)
        x = activation(x.flatten(0, 1)).view_as(x)  # a channel of its own for each of the width
        return torch.softmax(output(x).float(), dim=-1)[..., 1]
