"""Hi-LANDER: linkage and density by one network, faces merged into trees, and again the peaks of these trees.

Shape letters: N faces, M nodes of a level, which are trees of the level below, K neighbours with the node itself first,
B batch, D feature dimension, E width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcde.clustering.components import connected_labels
from lcde.clustering.whitening import cluster_sums
from lcde.data.gallery import Gallery, KNNGraph, row_blocks
from lcde.data.knn import build_knn
from lcde.data.search import edge_similarities
from lcde.methods.classical import ProbabilityRule
from lcde.methods.method import Clustering, Scores, timed
from lcde.models.base import DeviceGraph, MakeOptimizer, MakeScheduler, Neighbourhoods, PairModel, PairNetworks
from lcde.settings import Within

LEVELS = 10  # at most
Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass
class HilanderRule(ProbabilityRule):
    """Each face joins the most probable of its denser neighbours; peaks, which join none, are clustered again.

    Density is the mean over the neighbours of similarity, counted for or against by the probability that they are of
    the same identity. It ends with a level where no edge is above the threshold.

    Attributes
    ----------
    neighbours : int
        Nearest neighbours that are read of each face and of each peak, itself counted; all where the graph has fewer.

    References
    ----------
    Xing, He, Xiao, Wang, Xiong, Xia, Wipf, Zhang, Soatto: Learning hierarchical graph neural networks for image
    clustering. ICCV 2021.
    """

    neighbours: Annotated[int, Within(2)] = 10

    needs_scores = True

    def weigh(self, gallery: Gallery, scores: Scores | None) -> KNNGraph:
        """The edges of the faces, weighted by their probability."""
        assert scores is not None
        level = first_level(gallery.features, gallery.graph, self.neighbours)
        return KNNGraph(level.graph.indices, scores.linkage(level.features, level.graph))

    def cut(self, gallery: Gallery, graph: KNNGraph, scores: Scores | None = None) -> Clustering:
        """The clustering by `threshold`, of ``graph`` as `weigh` gave it; ``scores`` are asked about higher levels."""
        assert scores is not None
        threshold, seconds = self.require_threshold(), dict[str, float]()
        with timed(seconds, "levels"):
            level, probability = first_level(gallery.features, gallery.graph, graph.k), graph.similarities
            for _ in range(LEVELS):
                edges = tree_edges(level.graph, probability, density(level.graph.similarities, probability), threshold)
                if not len(edges):
                    break
                level = next_level(level, edges, gallery.features)
                probability = scores.linkage(level.features, level.graph)
        return Clustering(level.nodes, seconds)


class Level(NamedTuple):
    """Nodes that are to be merged.

    Attributes
    ----------
    features : (M, 2D) float32
        Those of each node's peak beside the mean of its faces.
    graph : KNNGraph
        Of the peaks.
    nodes : (N,) int64
        The node that each face is in.
    peaks : (M,) int64
        The face that is the peak of each node.
    """

    features: np.ndarray
    graph: KNNGraph
    nodes: np.ndarray
    peaks: np.ndarray


def first_level(features: np.ndarray, graph: KNNGraph, k: int) -> Level:
    """The faces, with the first ``k`` columns of their ``graph``."""
    faces = np.arange(len(features))
    return Level(np.tile(features, 2), KNNGraph(graph.indices[:, :k], graph.similarities[:, :k]), faces, faces)


def next_level(level: Level, edges: np.ndarray, features: np.ndarray) -> Level:
    """The trees that the ``edges`` (L, 2) of `tree_edges` make, of faces with ``features`` (N, D)."""
    trees = connected_labels(edges, len(level.graph))
    roots = np.setdiff1d(np.arange(len(trees)), edges[:, 0])
    peaks, nodes = level.peaks[roots[np.argsort(trees[roots])]], trees[level.nodes]
    means = cluster_sums(features, nodes) / np.bincount(nodes).astype(np.float32)[:, None]
    graph = build_knn(features[peaks], min(level.graph.k, len(peaks)))
    return Level(np.concatenate([features[peaks], means], axis=1), graph, nodes, peaks)


def density(similarities: Array, probability: Array) -> Array:
    """Mean (M,) over all K neighbours but the first of s·(2p - 1), where p (M, K) may be 0 and 1 as known."""
    return (similarities * (2 * probability - 1))[:, 1:].sum(1) / max(similarities.shape[1] - 1, 1)


def tree_edges(graph: KNNGraph, probability: np.ndarray, density: np.ndarray, threshold: float) -> np.ndarray:
    """Edges (L, 2) int64 from each node to the most probable of its denser neighbours, if above ``threshold``.

    Parameters
    ----------
    graph : KNNGraph
        Of M nodes.
    probability : (M, K) float32
    density : (M,) float32
    threshold : float
    """
    probability = np.where(density[graph.indices] > density[:, None], probability, -1)
    joined = np.flatnonzero(probability.max(axis=1) > threshold)
    return np.stack([joined, graph.indices[joined, probability[joined].argmax(axis=1)]], axis=1)


class LinkageNet(nn.Module):
    """One layer of neighbourhood aggregation over nodes, and a classifier of edges.

    Parameters
    ----------
    feature_dim : int
        D
    width : int
        Of the layer; the classifier has half of it.
    """

    def __init__(self, feature_dim: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.aggregation = nn.Linear(4 * feature_dim, width)
        self.source_and_target = nn.Linear(width, 2 * half)
        self.classifier = nn.Sequential(nn.PReLU(half), nn.Linear(half, half), nn.PReLU(half), nn.Linear(half, 2))

    def ends(self, neighbours: Tensor, similarities: Tensor) -> Tensor:
        """What nodes are as source and as target of an edge (B, E), from neighbours (B, K, 2D), similarities (B, K)."""
        weights = torch.relu(similarities[:, 1:, None])
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        mean = (weights * neighbours[:, 1:]).sum(dim=1)
        return self.source_and_target(torch.relu(self.aggregation(torch.cat([neighbours[:, 0], mean], dim=-1))))

    def forward(self, ends: Tensor) -> Tensor:
        """Logits (B, K - 1, 2) that the first of K nodes is of one identity with the others, by `ends` (B, K, E)."""
        source, target = ends.chunk(2, dim=-1)
        x = source[:, 1:] + target[:, :1]
        return self.classifier(x.flatten(0, 1)).view(*x.shape[:2], 2)

    def linkage(self, features: Tensor, indices: Tensor, similarities: Tensor) -> Tensor:
        """Probability (M, K) that neighbours are of one identity, 1 for nodes themselves, from features (M, 2D)."""
        blocks = list(row_blocks(len(features)))
        ends = torch.cat([self.ends(features[indices[rows].long()], similarities[rows]) for rows in blocks])
        others = torch.cat([torch.softmax(self(ends[indices[rows].long()]), dim=-1)[..., 1] for rows in blocks])
        return F.pad(others, (1, 0), value=1)


class TrainingGraph(NamedTuple):
    """A level of the training part on the device.

    Attributes
    ----------
    nodes : DeviceGraph
    similarities : (M, K) float32
    density : (M,) float32
        By the identities of the peaks.
    node_of : (N,) int64
        The node that each face is in.
    """

    nodes: DeviceGraph
    similarities: Tensor
    density: Tensor
    node_of: Tensor


def training_graphs(gallery: DeviceGraph, hierarchies: Sequence[Sequence[int]]) -> list[TrainingGraph]:
    """Levels of ``gallery``, merged by true density and similarity, for each of ``hierarchies``: K and their number."""
    assert gallery.labels_true is not None
    tensors = gallery.features, gallery.indices, gallery.labels_true
    features, indices, labels = (tensor.cpu().numpy() for tensor in tensors)
    similarities, graphs = edge_similarities(features, indices), []
    for k, num_levels in hierarchies:
        level = first_level(features, KNNGraph(indices, similarities), k)
        for _ in range(num_levels):
            graph, identities = level.graph, labels[level.peaks]
            same = identities[graph.indices] == identities[:, None]
            known = density(graph.similarities, same.astype(np.float32))
            arrays = level.features, graph.indices, identities, graph.similarities, known, level.nodes
            placed = [torch.from_numpy(array).to(gallery.features.device) for array in arrays]
            graphs.append(TrainingGraph(DeviceGraph(*placed[:3]), *placed[3:]))
            level = next_level(level, tree_edges(graph, graph.similarities, known, 0), features)
    return graphs


class HilanderModel(PairModel):
    """Learns linkage and density on several levels of the training part, with several numbers of neighbours.

    Parameters
    ----------
    feature_dim, k : int
        D and K of the galleries.
    width : int
        As of `LinkageNet`.
    hierarchies : list of [int, int]
        Neighbours, and levels built with so many.
    optimizer, scheduler : callable, optional
        As of `PairModel`.
    """

    layer_hparams = ("width",)

    def __init__(
        self,
        feature_dim: int,
        k: int,
        width: int,
        hierarchies: list[list[int]],
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(feature_dim, k, optimizer, scheduler)
        self.hierarchies = hierarchies
        self.network = LinkageNet(feature_dim, width)
        self._graphs: dict[int, list[TrainingGraph]] = {}

    def networks(self, dtype: torch.dtype) -> PairNetworks:
        """The linkage of any nodes; float32 alone."""
        return PairNetworks(linkage=self.network.linkage)

    def losses(self, batch: Neighbourhoods, training: bool) -> dict[str, Tensor]:
        """Squared error of the density of nodes, and cross-entropy of their edges to denser ones.

        Training takes one level in turn, validation the faces. Edges within and between identities weigh the same in
        sum.
        """
        levels = self._levels(batch.graph)
        level = levels[self.batch_idx % len(levels) if training else 0]
        nodes = torch.unique(level.node_of[batch.pairs])
        graph, neighbours = level.nodes, level.nodes.indices[nodes].long()
        read, place = torch.unique(neighbours, return_inverse=True)
        features = graph.features_of(graph.indices[read])
        if batch.graph.rotation is not None:
            features = torch.cat([half @ batch.graph.rotation for half in features.chunk(2, dim=-1)], dim=-1)
        ends = self.network.ends(features, level.similarities[read])
        logits = self.network(ends[place]).float()

        found = density(level.similarities[nodes], F.pad(torch.softmax(logits, dim=-1)[..., 1], (1, 0), value=1))
        labels = graph.labels_true
        assert labels is not None
        denser = level.density[neighbours[:, 1:]] > level.density[nodes, None]
        same = (labels[neighbours[:, 1:]] == labels[nodes, None])[denser].long()
        loss = F.cross_entropy(logits[denser], same, reduction="none")
        return {
            "density_loss": F.mse_loss(found, level.density[nodes]),
            "linkage_loss": (loss / same.bincount(minlength=2)[same]).sum() / 2,
        }

    def _levels(self, gallery: DeviceGraph) -> list[TrainingGraph]:
        """`training_graphs` of ``gallery``, made when it is first seen."""
        key = id(gallery.features)
        if key not in self._graphs:
            self._graphs[key] = training_graphs(gallery, self.hierarchies)
        return self._graphs[key]

    def on_fit_end(self) -> None:
        """Forget the training part."""
        self._graphs.clear()
