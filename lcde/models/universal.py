"""The universal model: whether two clusters are one person, from similarities alone, for any embeddings.

Shape letters: B batch, C nodes, K neighbours with the node itself first, D feature dimension, G galleries of a batch,
H attention heads, L layers, E width.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcde.clustering.nodes import CONTEXT_WIDTH, FACES_WIDTH, GALLERY_WIDTH, NODE_WIDTH, RANKS, NodeGraph, describe
from lcde.data.gallery import Gallery
from lcde.methods.method import Scores
from lcde.models.base import MakeOptimizer, MakeScheduler, Model
from lcde.progress import track

EDGE_WIDTH, PAIR_WIDTH, HIDDEN = 9 + FACES_WIDTH, 6, 48
NODES_AT_A_TIME = 256


class NodeBatch(NamedTuple):
    """Neighbourhoods of nodes of one gallery or several, as `UniversalNet` reads them.

    Attributes
    ----------
    there : (B, K) bool
        Whether there is such a neighbour: of a gallery of few nodes, the others are zeros.
    directions : (B, K, D) float32
        Unit directions of the neighbours, the node itself first.
    rank : (B, K) float32
        log(1 + r) / 5 of the node's rank r among the neighbours of each of its own, 2K where it is not among them.
    own : (B, K, 2) float32
        Mean and spread of the neighbours' similarities to their impostors.
    resultants, correction, expected : (B, K) float32
    faces : (B, K, FACES_WIDTH) float32
    features : (B, K, NODE_WIDTH) float32
    near : (B, K, len(RANKS)) float32
    number : (B,) int64
        Which of the G galleries each node is of.
    gallery : (G, GALLERY_WIDTH) float32
    impostors : (G, 2) float32
    context : (G, nodes, CONTEXT_WIDTH) float32
    """

    there: Tensor
    directions: Tensor
    rank: Tensor
    own: Tensor
    resultants: Tensor
    correction: Tensor
    expected: Tensor
    faces: Tensor
    features: Tensor
    near: Tensor
    number: Tensor
    gallery: Tensor
    impostors: Tensor
    context: Tensor

    @classmethod
    def of(cls, nodes: NodeGraph, rows: np.ndarray, k: int) -> "NodeBatch":
        """The neighbourhoods of the nodes ``rows`` (B,) of one gallery, with ``k`` neighbours or room for them."""
        neighbours, missing = nodes.graph.indices[rows].astype(np.int64), k - nodes.graph.k
        found = nodes.graph.indices[neighbours] == rows[:, None, None]
        rank = np.log1p(np.where(found.any(axis=2), found.argmax(axis=2), 2 * nodes.graph.k)) / 5
        of_nodes = nodes.own, nodes.nodes.resultants, nodes.correction, nodes.expected
        of_neighbours = *(values[neighbours] for values in of_nodes), nodes.faces[rows]
        of_neighbours += nodes.features[neighbours], nodes.near[neighbours]
        arrays = np.ones(neighbours.shape), nodes.nodes.directions[neighbours], rank, *of_neighbours
        room = ((0, 0), (0, missing), (0, 0))
        padded = [np.pad(array, room[: array.ndim]) for array in arrays]
        of_gallery = nodes.gallery[None], nodes.impostors[None], nodes.context[None]
        there, *tensors = [torch.from_numpy(array.astype(np.float32)) for array in (*padded, *of_gallery)]
        number = torch.zeros(len(rows), dtype=torch.int64)
        return cls._make([there.bool(), *tensors[:-3], number, *tensors[-3:]])


class Block(nn.Module):
    """A pre-norm transformer layer whose attention has a bias for each pair of tokens."""

    def __init__(self, width: int, nhead: int, dropout: float) -> None:
        super().__init__()
        self.nhead, self.dropout = nhead, nn.Dropout(dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.linear1, self.linear2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, K, E), (B, H, K, K) → (B, K, E)."""
        query, key, value = self.in_proj(self.norm1(x)).unflatten(2, (3, self.nhead, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out_proj(attended))
        return x + self.dropout(self.linear2(F.gelu(self.linear1(self.norm2(x)))))


class UniversalNet(nn.Module):
    """Logits that a node and each of its neighbours are one identity.

    Tokens are the neighbours. No coordinate enters: directions are read through their similarities, which bias the
    attention. Nodes of all sizes, pooled, tell the network what kind of gallery it sees.

    Parameters
    ----------
    width, nhead, num_layers : int
        Of the transformer.
    context_width : int
        Of what is read of the gallery.
    dropout : float
        In the layers, and on the description of the gallery, which the network would memorise.
    """

    def __init__(self, width: int, nhead: int, num_layers: int, context_width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.pair_bias = nn.Sequential(nn.Linear(PAIR_WIDTH, 16), nn.GELU(), nn.Linear(16, nhead * num_layers))
        steps = nn.Linear(CONTEXT_WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU()
        self.of_context = nn.Sequential(*steps)
        pooled = 2 * HIDDEN + GALLERY_WIDTH
        self.of_gallery = nn.Sequential(nn.Linear(pooled, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, context_width))
        token = EDGE_WIDTH + len(RANKS) + 1 + 2 * NODE_WIDTH + GALLERY_WIDTH + context_width
        self.of_token = nn.Sequential(nn.Linear(token, width), nn.GELU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(Block(width, nhead, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Sequential(nn.Linear(2 * width + EDGE_WIDTH, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, batch: NodeBatch) -> Tensor:
        """Logits (B, K); those of the nodes themselves mean nothing."""
        similarities = batch.directions @ batch.directions.transpose(1, 2)  # (B, K, K)
        mean, spread = batch.impostors[batch.number].T[..., None, None]
        own_mean, own_spread = batch.own[..., 0], batch.own[..., 1].where(batch.there, 1)
        z = _clipped((similarities - mean) / spread)
        own = (similarities - own_mean[..., None]) / own_spread[..., None]
        own = _clipped((own + (similarities - own_mean[:, None]) / own_spread[:, None]) / 2)
        linkage_mean = similarities * batch.resultants[..., None] * batch.resultants[:, None]  # over pairs of faces
        linkage = _clipped((linkage_mean - mean) / spread)
        corrected = (similarities * batch.correction[..., None] * batch.correction[:, None]).clamp(-1, 3)
        relative, distance = _distances(batch, linkage_mean, mean)
        pairs = torch.stack([z, own, linkage, corrected, corrected - corrected[:, :1], relative], dim=-1)
        bias = self.pair_bias(pairs).unflatten(3, (len(self.layers), -1)).permute(3, 0, 4, 1, 2)  # (L, B, H, K, K)
        bias = bias.masked_fill(~batch.there[:, None, None], -torch.inf)

        k = similarities.shape[1]
        best = batch.there[:, 1:5, None]
        to_best = (z[:, 1:5] * best).sum(dim=1) / best.sum(dim=1)  # of each neighbour to the best ones of the node
        edges = [z[:, 0], own[:, 0], linkage[:, 0], corrected[:, 0], relative[:, 0], distance[:, 0]]
        edge = torch.stack([*edges, similarities[:, 0], batch.rank, to_best], dim=-1)
        edge = torch.cat([edge, batch.faces], dim=-1)
        near = _clipped((batch.near - mean) / spread) - z[:, 0, :, None]
        place = (torch.arange(k, device=z.device).log1p() / 5).expand(len(z), k)[..., None]
        pooled = self.of_context(batch.context)
        gallery = torch.cat([pooled.mean(dim=1), pooled.amax(dim=1), batch.gallery], dim=-1)
        gallery = torch.cat([batch.gallery, self.of_gallery(self.dropout(gallery))], dim=-1)
        gallery = self.dropout(gallery[batch.number])  # (B, ·)
        shared = batch.features[:, :1].expand(-1, k, -1), gallery[:, None].expand(-1, k, -1)
        x = self.of_token(torch.cat([edge, near, place, batch.features, *shared], dim=-1))
        for layer, of_layer in zip(self.layers, bias, strict=True):
            x = layer(x, of_layer)
        x = self.norm(x)
        return self.classifier(torch.cat([x, x[:, :1].expand_as(x), edge], dim=-1))[..., 0]


class UniversalModel(Model):
    """Learns from clusters of random galleries which of them are one identity; fits any D and any K.

    Parameters
    ----------
    width, nhead, num_layers, context_width, dropout
        As of `UniversalNet`.
    candidates : int
        Nearest nodes that each node is compared with, itself counted.
    optimizer, scheduler : callable, optional
        As of `Model`.
    """

    def __init__(
        self,
        width: int,
        nhead: int,
        num_layers: int,
        context_width: int,
        dropout: float,
        candidates: int,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.candidates = candidates
        self.net = UniversalNet(width, nhead, num_layers, context_width, dropout)

    def losses(self, batch: Any, training: bool) -> dict[str, Tensor]:
        """Cross-entropy of the neighbours, weighed by the smaller of both sizes: wrong merges of large ones cost more.

        Parameters
        ----------
        batch : (Tensor, NodeBatch, Tensor)
            Whether each neighbour is of the node's identity (B, K), neighbourhoods, and the sizes (B, K).
        """
        same, nodes, sizes = batch
        weight = (1 + torch.minimum(sizes[:, :1], sizes).log1p()) * nodes.there
        loss = F.binary_cross_entropy_with_logits(self.net(nodes)[:, 1:], same[:, 1:], reduction="none")
        return {"merge_loss": (loss * weight[:, 1:]).sum() / weight[:, 1:].sum()}

    def bind(self, gallery: Gallery, precision: str, show_progress: bool, score_cache: Path | None) -> Scores:
        """Scores of the clusters of ``gallery``; they depend on the clusters so far and are not kept."""
        return ClusterScores(self.eval(), show_progress)


class ClusterScores(Scores):
    """Asks a `UniversalModel` about clusters, on the process that clusters."""

    def __init__(self, model: UniversalModel, show_progress: bool) -> None:
        self.model, self.show_progress = model, show_progress

    @torch.inference_mode()
    def merge_probability(self, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Scores.merge_probability`; the mean of both directions, where both are there."""
        nodes = describe(features, labels, self.model.candidates)
        probability = np.empty(nodes.graph.indices.shape, dtype=np.float32)
        blocks = range(0, len(probability), NODES_AT_A_TIME)
        for start in track(blocks, "clusters", self.show_progress and len(blocks) > 1):
            rows = np.arange(start, min(start + NODES_AT_A_TIME, len(probability)))
            batch = NodeBatch._make(tensor.to(self.model.device) for tensor in NodeBatch.of(nodes, rows, nodes.graph.k))
            probability[rows] = self.model.net(batch).sigmoid().cpu().numpy()
        return nodes.graph.indices, both_ways(probability, nodes.graph.indices)


def both_ways(probability: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Mean of the probability (C, K) from i to j and from j to i; where i is no neighbour of j, the former alone."""
    num_nodes = len(indices)
    keys = (np.arange(num_nodes)[:, None] * num_nodes + indices).ravel()
    back = (indices.astype(np.int64) * num_nodes + np.arange(num_nodes)[:, None]).ravel()
    order = np.argsort(keys)
    place = order[np.minimum(np.searchsorted(keys, back, sorter=order), len(keys) - 1)]
    other = np.where(keys[place] == back, probability.ravel()[place], probability.ravel())
    return (probability + other.reshape(probability.shape)) / 2


def _clipped(z: Tensor) -> Tensor:
    return (z / 4).clamp(-1.5, 6)


def _distances(batch: NodeBatch, linkage: Tensor, impostor_mean: Tensor) -> tuple[Tensor, Tensor]:
    """How far apart each two nodes (B, K, K) are: unlike similarities, distances do not change with a common offset.

    The squared distance of two mean faces is what similarities within both exceed those between them by. The first
    result relates it to that of impostors: 1 for one identity, about 0 for two of average likeness. The second relates
    it to the variance within both: log-ratio.
    """
    within = (batch.expected[..., None] + batch.expected[:, None]) / 2
    distance = (within - linkage).clamp(min=0)
    of_impostors = (within - impostor_mean).clamp(min=0.02)
    relative = 1 - (distance / of_impostors).clamp(max=2)
    return relative, ((distance + 1e-3) / (1 - within + 1e-2)).log().clamp(-4, 4) / 2
