"""LTC: clusters proposed at several thresholds, judged by a graph network, and the best one for each face.

Shape letters: N faces, K neighbours with the face itself first, P proposals, n faces of the largest one, B batch,
D feature dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from lcde.clustering.components import separate_noise
from lcde.clustering.edges import edges_above
from lcde.clustering.nodes import pool
from lcde.data import datasets
from lcde.data.gallery import Gallery, KNNGraph
from lcde.data.knn import build_knn
from lcde.distributed import rank, world_size
from lcde.errors import InputError
from lcde.methods.cdp import bounded_components
from lcde.methods.method import Clustering, Rule, Scores, timed
from lcde.models.base import MakeOptimizer, MakeScheduler, Model
from lcde.progress import track
from lcde.settings import Within, check_settings

STEP = 0.05  # share of the way to 1 by which the threshold rises inside groups that are too large
LARGEST_GROUP, LARGEST_PROPOSAL, SMALLEST = 300, 500, 3  # faces
LEAST_LIKENESS = 0.4  # cosine similarity of the means of groups that are joined
PROPOSALS_AT_A_TIME = 32

Batch = tuple[Tensor, Tensor, Tensor]  # features (B, n, D), edges (B, n, n), true IoU (B,)


@dataclass
class LTCRule(Rule):
    """Of many overlapping proposals, each face takes the one that a network gives the highest IoU with an identity.

    Proposals are connected components of edges above a threshold, and unions of such components with similar means.
    Faces in none are clusters of their own.

    Attributes
    ----------
    thresholds : list of float
        Least similarities of edges; components at each are proposed.
    joined_thresholds : list of float
        Least similarities of edges; components at each are joined.
    joins : list of [int, int]
        Neighbours among the components, itself counted, and how many components a union may have; each with every one
        of `joined_thresholds`.

    References
    ----------
    Yang, Zhan, Chen, Yan, Loy, Lin: Learning to cluster faces on an affinity graph. CVPR 2019.
    """

    thresholds: list[float] = field(default_factory=lambda: [0.6, 0.7])
    joined_thresholds: list[float] = field(default_factory=lambda: [0.6, 0.7, 0.75])
    joins: list[list[int]] = field(default_factory=lambda: [[2, 8], [3, 5]])

    needs_scores = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, values in (("thresholds", self.thresholds), ("joined_thresholds", self.joined_thresholds)):
            if not all(-1 <= value <= 1 for value in values):
                raise InputError(f"clustering.{key}={values} must be similarities from -1 to 1.")
        if not all(len(join) == 2 and min(join) >= 2 for join in self.joins):
            raise InputError(f"clustering.joins={self.joins} must be pairs of numbers of at least 2.")

    def __call__(self, gallery: Gallery, scores: Scores | None = None) -> Clustering:
        """Cluster ``gallery``."""
        assert scores is not None
        seconds: dict[str, float] = {}
        with timed(seconds, "proposals"):
            proposals = self.proposals(gallery)
        with timed(seconds, "scores"):
            overlap = scores.identity_overlap(proposals)
        with timed(seconds, "deoverlap"):
            labels = deoverlap(proposals, overlap, len(gallery))
        return Clustering(labels, seconds)

    def proposals(self, gallery: Gallery) -> list[np.ndarray]:
        """The proposals for ``gallery``: faces of each, in ascending order."""
        found = [faces for threshold in self.thresholds for faces in grown(gallery.graph, threshold)]
        for threshold in self.joined_thresholds:
            for neighbours, most in self.joins:
                found += joined(gallery, threshold, neighbours, most)
        return found


def grown(graph: KNNGraph, threshold: float) -> list[np.ndarray]:
    """Components of three faces or more of the edges of at least ``threshold``, which rises inside too large ones."""
    return [faces for faces in members(_components(graph, threshold, LARGEST_GROUP)) if len(faces) >= SMALLEST]


def joined(gallery: Gallery, threshold: float, neighbours: int, most: int) -> list[np.ndarray]:
    """Unions of two to ``most`` components by ``threshold`` that are near each other in a graph of ``neighbours``."""
    labels = _components(gallery.graph, threshold, LARGEST_GROUP)
    directions = pool(gallery.features, labels).directions
    unions = _components(build_knn(directions, min(neighbours, len(directions))), LEAST_LIKENESS, most)
    several = np.bincount(unions) > 1
    found = members(unions[labels])
    return [
        faces for faces, fits in zip(found, several, strict=True) if fits and SMALLEST <= len(faces) <= LARGEST_PROPOSAL
    ]


def _components(graph: KNNGraph, threshold: float, most: int) -> np.ndarray:
    return bounded_components(*edges_above(graph, threshold), len(graph), most, STEP)


def members(labels: np.ndarray) -> list[np.ndarray]:
    """The faces of each cluster of ``labels`` (N,) from 0, without gaps, in ascending order."""
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])


def deoverlap(proposals: Sequence[np.ndarray], overlap: np.ndarray, num_faces: int) -> np.ndarray:
    """Labels (N,) int64 from 0: each face goes to the one of its ``proposals`` of the highest ``overlap`` (P,)."""
    place = np.empty(len(proposals), dtype=np.int64)
    place[np.argsort(-overlap, kind="stable")] = np.arange(len(proposals))
    best = np.full(num_faces, len(proposals))
    for faces, of_proposal in zip(proposals, place, strict=True):
        best[faces] = np.minimum(best[faces], of_proposal)
    return separate_noise(np.where(best < len(proposals), best, -1))


def true_overlap(proposals: Sequence[np.ndarray], labels_true: np.ndarray) -> np.ndarray:
    """IoU (P,) float32 of each of ``proposals`` with all faces of the identity that most of its faces are of."""
    sizes, overlap = np.bincount(labels_true), np.empty(len(proposals), dtype=np.float32)
    for number, faces in enumerate(proposals):
        shares = np.bincount(labels_true[faces])
        identity = shares.argmax()
        overlap[number] = shares[identity] / (len(faces) + sizes[identity] - shares[identity])
    return overlap


def inner_edges(graph: KNNGraph, faces: np.ndarray) -> np.ndarray:
    """Similarities (n, n) of the kNN edges among ``faces`` (n,), from 0 on; of both directions, rows of sum 1."""
    neighbours = graph.indices[faces]
    place = np.searchsorted(faces, neighbours).clip(max=len(faces) - 1)
    rows, columns = np.nonzero(faces[place] == neighbours)
    edges = np.zeros((len(faces), len(faces)), dtype=np.float32)
    edges[rows, place[rows, columns]] = graph.similarities[faces[rows], columns].clip(0)
    edges = np.maximum(edges, edges.T)
    return edges / edges.sum(axis=1, keepdims=True)


def padded(gallery: Gallery, proposals: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Features (B, n, D) and `inner_edges` (B, n, n) of ``proposals``; zeros where there is no face."""
    size = max(map(len, proposals))
    features = np.zeros((len(proposals), size, gallery.features.shape[1]), dtype=np.float32)
    edges = np.zeros((len(proposals), size, size), dtype=np.float32)
    for number, faces in enumerate(proposals):
        features[number, : len(faces)] = gallery.features[faces]
        edges[number, : len(faces), : len(faces)] = inner_edges(gallery.graph, faces)
    return torch.from_numpy(features), torch.from_numpy(edges)


class ProposalNet(nn.Module):
    """GCN-D: graph convolutions, the maximum over the faces, and a regression.

    Parameters
    ----------
    feature_dim : int
        D
    widths : sequence of int
        Of the convolutions.
    dropout : float
        Share of the faces that are dropped after each.
    """

    def __init__(self, feature_dim: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        sizes = zip([feature_dim, *widths[:-1]], widths, strict=True)
        self.convolutions = nn.ModuleList(nn.Linear(*size, bias=False) for size in sizes)
        self.dropout, self.output = nn.Dropout1d(dropout), nn.Linear(widths[-1], 1)

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        """Estimated IoU (B,) of proposals, see `padded`; without biases, what is padded stays zero."""
        x = features
        for convolution in self.convolutions:
            x = self.dropout(torch.relu(edges @ convolution(x)))
        return self.output(x.amax(dim=1))[:, 0]


class LTCModel(Model):
    """Regresses the IoU of proposals with the identity of most of their faces.

    Parameters
    ----------
    feature_dim, k : int
        D and K of the galleries.
    widths, dropout
        As of `ProposalNet`.
    optimizer, scheduler : callable, optional
        As of `Model`.
    """

    layer_hparams = ("widths",)

    def __init__(
        self,
        feature_dim: int,
        k: int,
        widths: list[int],
        dropout: float,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.feature_dim, self.k = feature_dim, k
        self.network = ProposalNet(feature_dim, widths, dropout)

    def losses(self, batch: Batch, training: bool) -> dict[str, Tensor]:
        """Squared error of the IoU."""
        features, edges, overlap = batch
        return {"overlap_loss": F.mse_loss(self.network(features, edges).float(), overlap)}

    def bind(self, gallery: Gallery, precision: str, show_progress: bool, score_cache: Path | None) -> Scores:
        """Scores of proposals for ``gallery``, which are not kept."""
        self.require_fit(gallery)
        return ProposalScores(self.eval(), gallery, show_progress)


class ProposalScores(Scores):
    """Asks an `LTCModel` about proposals, on the process that clusters."""

    def __init__(self, model: LTCModel, gallery: Gallery, show_progress: bool) -> None:
        self.model, self.gallery, self.show_progress = model, gallery, show_progress

    @torch.inference_mode()
    def identity_overlap(self, clusters: Sequence[np.ndarray]) -> np.ndarray:
        """As `Scores.identity_overlap`."""
        overlap = np.empty(len(clusters), dtype=np.float32)
        order = np.argsort([len(faces) for faces in clusters], kind="stable")  # so that little is padded
        batches = np.split(order, range(PROPOSALS_AT_A_TIME, len(order), PROPOSALS_AT_A_TIME)) if len(order) else []
        for batch in track(batches, "proposals", self.show_progress and len(batches) > 1):
            features, edges = padded(self.gallery, [clusters[number] for number in batch])
            found = self.model.network(features.to(self.model.device), edges.to(self.model.device))
            overlap[batch] = found.float().cpu().numpy()
        return overlap


class ProposalBatches(Dataset):
    """Batches of proposals for a labelled gallery, built when they are asked for.

    Parameters
    ----------
    gallery : Gallery
    proposals : sequence of arrays
    batches : sequence of arrays
        Which proposals each batch has.
    """

    def __init__(self, gallery: Gallery, proposals: Sequence[np.ndarray], batches: Sequence[np.ndarray]) -> None:
        assert gallery.labels_true is not None
        self.gallery, self.proposals, self.batches = gallery, proposals, batches
        self.overlap = torch.from_numpy(true_overlap(proposals, gallery.labels_true))

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch:
        batch = self.batches[number]
        return *padded(self.gallery, [self.proposals[each] for each in batch]), self.overlap[batch]


class ProposalDataModule(LightningDataModule):
    """Serves proposals for the training part of a data set, and for its held-out identities.

    Parameters
    ----------
    dataset : Dataset
    proposals : list of [int, float]
        Neighbours that are read, all where the graph has fewer, and the least similarity: of each kind of `grown` ones.
    batch_size : int
        Proposals per step and process.
    seed : int
        Of the order in which they come.

    Raises
    ------
    InputError
        Where files are missing or do not fit, or nothing is proposed.
    """

    batch_size: Annotated[int, Within(1)]
    seed: Annotated[int, Within(0)]

    model_class = LTCModel  # that takes its batches

    def __init__(self, dataset: datasets.Dataset, proposals: list[list[float]], batch_size: int, seed: int) -> None:
        super().__init__()
        self.kinds, self.batch_size, self.seed = proposals, batch_size, seed
        check_settings(self, "data.")
        parts = dataset.load(train=True)
        assert parts.train is not None
        self.train_gallery = parts.train
        self.parts = replace(parts, evaluation=list(parts.evaluation))  # read once, as each epoch clusters them
        self.train_proposals = self._proposals(parts.train)
        if not self.train_proposals:
            raise InputError(f"data.proposals={proposals} gives no group of {SMALLEST} faces; lower its similarities.")

    def train_dataloader(self) -> DataLoader:
        """This process's share of the proposals, in the order of the present epoch."""
        assert self.trainer is not None
        number, step = len(self.train_proposals), self.batch_size * world_size()
        order = np.random.default_rng([self.seed, self.trainer.current_epoch]).permutation(number)
        return self._loader(self.train_gallery, self.train_proposals, order[: max(number // step, 1) * step])

    def val_dataloader(self) -> list[DataLoader]:
        """The proposals for the held-out identities; nothing where none are held out or proposed."""
        gallery = self.parts.validation
        proposals = [] if gallery is None else self._proposals(gallery)
        return [self._loader(gallery, proposals, np.arange(len(proposals)))] if gallery and proposals else []

    def _proposals(self, gallery: Gallery) -> list[np.ndarray]:
        found = []
        for k, threshold in self.kinds:
            graph = KNNGraph(gallery.graph.indices[:, : int(k)], gallery.graph.similarities[:, : int(k)])
            found += grown(graph, threshold)
        return found

    def _loader(self, gallery: Gallery, proposals: Sequence[np.ndarray], order: np.ndarray) -> DataLoader:
        """This rank's share of ``proposals`` in ``order``."""
        share = order[rank() : len(order) // world_size() * world_size() : world_size()]
        batches = np.split(share, range(self.batch_size, len(share), self.batch_size))
        return DataLoader(ProposalBatches(gallery, proposals, batches), batch_size=None)


def stepped(optimizer: Optimizer, total_steps: int, after: list[float], factor: float) -> LambdaLR:
    """Multiply the learning rate by ``factor`` at each of the shares ``after`` of ``total_steps``."""
    return LambdaLR(optimizer, lambda step: factor ** sum(step >= share * total_steps for share in after))
