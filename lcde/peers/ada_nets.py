"""Ada-NETS: neighbours sorted by the neighbours they share, as many kept as a network says, and a GCN over them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from torch import Tensor, nn
from torch.nn import functional as F

from lcde.clustering.shared_neighbours import products_at
from lcde.data.gallery import Gallery, KNNGraph, fill_in_threads, row_blocks
from lcde.data.knn import build_knn, order_neighbours
from lcde.errors import InputError
from lcde.methods.classical import CANDIDATES, ComponentsRule
from lcde.methods.method import Scores
from lcde.models.base import DeviceGraph, MakeOptimizer, MakeScheduler, Neighbourhoods, PairModel, PairNetworks
from lcde.settings import Within

ROWS = 1_024  # whose reciprocal neighbours are expanded, and whose neighbours are filtered, at a time
JACCARD = 0.7  # weight of the shared neighbours in structure space; the rest is that of the similarity
BETA = 0.5  # of the F-score that makes a number of neighbours the best one
OUTPUTS = 128  # at most that the hinge loss of a step compares, but one neighbourhood at least
GENUINE, IMPOSTOR = 0.9, -1.0  # similarities of outputs that it asks for, at least and at most


@dataclass
class AdaNETSRule(ComponentsRule):
    """Connected components of the kNN graph of what the model makes of each face.

    Attributes
    ----------
    neighbours : int
        K of that graph; all faces where they are fewer.

    References
    ----------
    Wang, Zhang, Zhang, Wang, Lin, Zhang, Sun: Ada-NETS: face clustering via adaptive neighbour discovery in the
    structure space. ICLR 2022.
    """

    neighbours: Annotated[int, Within(2)] = 120

    needs_scores = True

    def weigh(self, gallery: Gallery, scores: Scores | None) -> KNNGraph:
        """The kNN graph of the model's outputs."""
        assert scores is not None
        return build_knn(scores.embedding(), min(self.neighbours, len(gallery)))

    def candidates(self, graph: KNNGraph) -> np.ndarray:
        """Thresholds at equal shares of the edges: most similarities of outputs are close to 1."""
        return np.quantile(graph.similarities[:, 1:], np.linspace(0.02, 0.98, CANDIDATES)).clip(-1, 1)


def structure_graph(graph: KNNGraph) -> KNNGraph:
    """The neighbours of ``graph``, sorted and with their similarities in structure space.

    Neighbours of each other among the first K, or K/2, are reciprocal. The set of a face has its reciprocal neighbours
    among K, and those among K/2 of each of them that has two thirds of these in common with the face. The similarity is
    ``JACCARD`` times the Jaccard index of both sets, and the cosine for the rest.
    """
    indices = graph.indices
    wide, near = reciprocal(indices), reciprocal(indices[:, : graph.k // 2])
    expanded = _expanded(wide, near)
    shared, size = products_at(expanded, expanded.T.tocsr(), indices), np.diff(expanded.indptr)
    similarities = np.empty_like(graph.similarities)
    for rows in row_blocks(len(graph)):
        union = size[rows, None] + size[indices[rows]] - shared[rows]
        similarities[rows] = JACCARD * shared[rows] / union + (1 - JACCARD) * graph.similarities[rows]
    return order_neighbours(KNNGraph(indices, similarities))


def reciprocal(indices: np.ndarray) -> csr_matrix:
    """Which faces are among the neighbours ``indices`` (N, K) of each other: (N, N), 1 where they are."""
    num_faces, k = indices.shape
    ones = np.ones(indices.size, dtype=np.float32)
    listed = csr_matrix((ones, indices.ravel(), np.arange(0, indices.size + 1, k)), shape=(num_faces, num_faces))
    return listed.multiply(listed.T).tocsr()


def _expanded(wide: csr_matrix, near: csr_matrix) -> csr_matrix:
    """The sets (N, N) of `structure_graph`, 1 for their faces."""
    size, blocks = np.diff(near.indptr), {}

    def expand(rows: slice) -> None:
        own = wide[rows]
        similar = own.multiply(own @ near).tocsr()  # how much of the nearer set of each neighbour is in this face's
        similar.data = (3 * similar.data >= 2 * size[similar.indices]).astype(np.float32)
        similar.eliminate_zeros()
        blocks[rows.start] = own + similar @ near

    fill_in_threads(expand, row_blocks(wide.shape[0], size=ROWS))
    expanded = vstack([blocks[start] for start in sorted(blocks)], format="csr")
    expanded.data[:] = 1
    return expanded


def best_count(same: Tensor, size: Tensor) -> Tensor:
    """Number (B,) of first neighbours that are most like a face's identity, by the F-score with ``BETA``.

    Parameters
    ----------
    same : (B, K) int64
        1 for neighbours of the identity.
    size : (B,) int64
        All faces of the identity.
    """
    found, count = same.cumsum(dim=1), torch.arange(1, same.shape[1] + 1, device=same.device)
    return 1 + (found / (BETA**2 * size[:, None] + count)).argmax(dim=1)


def filtered(indices: np.ndarray, kept: np.ndarray) -> csr_matrix:
    """Undirected edges (N, N) bool to the first ``kept`` (N,) of each face's neighbours ``indices`` (N, K)."""
    num_faces, k = indices.shape
    chosen, last = np.arange(k) < kept[:, None], np.concatenate([[0], np.cumsum(kept)])
    edges = csr_matrix((np.ones(last[-1], dtype=bool), indices[chosen], last), shape=(num_faces, num_faces))
    return edges.maximum(edges.T).tocsr()


def hinge_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Genuine pairs below `GENUINE` on average, and the most similar impostor pair above `IMPOSTOR`.

    ``outputs`` are (B, E) of unit length, ``labels`` (B,).
    """
    similarities, same = outputs @ outputs.T, labels[:, None] == labels
    genuine = torch.relu(GENUINE - similarities[same]).mean()
    return genuine + torch.relu(similarities.masked_fill(same, IMPOSTOR).max() - IMPOSTOR)


class AdaNETSModel(PairModel):
    """The adaptive filter and the graph convolutions, trained side by side.

    Parameters
    ----------
    feature_dim, k : int
        D and K.
    width : int
        Of all layers; even.
    dropout : float
        Of the filter.
    gcn_lr : float
        Learning rate of the graph convolutions; that of the filter is the optimiser's.
    optimizer, scheduler : callable, optional
        As of `PairModel`.

    Raises
    ------
    InputError
        Where ``width`` is odd.
    """

    layer_hparams = ("width",)

    def __init__(
        self,
        feature_dim: int,
        k: int,
        width: int,
        dropout: float,
        gcn_lr: float,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(feature_dim, k, optimizer, scheduler)
        if width % 2:
            raise InputError(f"model=ada_nets needs an even model.width; it is {width}.")
        self.gcn_lr = gcn_lr
        self.filter = AdaptiveFilter(feature_dim, width, dropout)
        self.first = nn.Sequential(nn.Linear(feature_dim, width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.PReLU(width))

    def parameter_groups(self) -> Iterable[Any]:
        """Those of the filter, and those of the graph convolutions with their own learning rate."""
        layers = [*self.first.parameters(), *self.second.parameters()]
        return [{"params": self.filter.parameters()}, {"params": layers, "lr": self.gcn_lr}]

    def graph_of(self, gallery: Gallery) -> KNNGraph:
        """Neighbours in structure space."""
        return structure_graph(gallery.graph)

    def networks(self, dtype: torch.dtype) -> PairNetworks:
        """The outputs of all faces; float32 alone."""
        return PairNetworks(embedding_in_graph=self._outputs)

    def _outputs(self, graph: DeviceGraph) -> Tensor:
        """Outputs (N, E) of the graph convolutions over the neighbours that the filter keeps."""
        share = torch.cat(
            [self.filter(graph.features_of(graph.indices[rows])) for rows in row_blocks(len(graph.indices), size=ROWS)]
        )
        kept = (self.k * share).round().clamp(1, self.k).long()
        edges, x = filtered(graph.indices.cpu().numpy(), kept.cpu().numpy()), graph.features
        for layer in (self.first, self.second):
            x = torch.cat([F.normalize(layer(_mean_over(edges[rows], x)), dim=-1) for rows in row_blocks(len(x))])
        return x

    def losses(self, batch: Neighbourhoods, training: bool) -> dict[str, Tensor]:
        """Error of the filter for both ends of all pairs, and hinge loss of the neighbours of some first ends."""
        graph, labels = batch.graph, batch.graph.labels_true
        assert labels is not None
        expected = best_count(batch.same_as_centre, torch.bincount(labels)[labels[batch.pairs.flatten()]]) / self.k
        error = self.filter(batch.features.flatten(0, 1)).float() / expected - 1
        faces = graph.indices[batch.pairs[: max(OUTPUTS // self.k, 1), 0]].flatten().long()
        return {
            "filter_loss": F.huber_loss(error, torch.zeros_like(error)),
            "embedding_loss": hinge_loss(self._unfiltered(graph, faces), labels[faces]),
        }

    def _unfiltered(self, graph: DeviceGraph, faces: Tensor) -> Tensor:
        """Outputs (B, E) for ``faces`` (B,) over all K neighbours of each face."""
        near, places = torch.unique(graph.indices[faces], return_inverse=True)
        x = F.normalize(self.first(graph.features_of(graph.indices[near.long()]).mean(dim=1)), dim=-1)
        return F.normalize(self.second(x[places].mean(dim=1)), dim=-1)


def _mean_over(edges: csr_matrix, values: Tensor) -> Tensor:
    """Mean (B, D) of the ``values`` (N, D) of the faces that ``edges`` (B, N) lead to."""
    indices, starts = (torch.from_numpy(array).to(values.device) for array in (edges.indices, edges.indptr[:-1]))
    return F.embedding_bag(indices, values, starts, mode="mean")


class AdaptiveFilter(nn.Module):
    """How many of a face's neighbours to keep: an LSTM in both directions over them, and a regression."""

    def __init__(self, feature_dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(feature_dim, width // 2, batch_first=True, bidirectional=True)
        self.projection = nn.Linear(width, feature_dim)
        self.residual = nn.Sequential(
            *(nn.Linear(feature_dim, width), nn.PReLU(), nn.Dropout(dropout)),
            *(nn.Linear(width, feature_dim), nn.PReLU(), nn.Dropout(dropout)),
        )
        self.share = nn.Linear(feature_dim, 1)

    def forward(self, neighbours: Tensor) -> Tensor:
        """Share (B,) of the neighbours (B, K, D) to keep."""
        x = (self.projection(self.lstm(neighbours)[0]) + neighbours) / 2**0.5
        x = F.normalize(F.normalize(x, dim=-1).mean(dim=1), dim=-1)
        return self.share((self.residual(x) + x) / 2**0.5)[:, 0]
