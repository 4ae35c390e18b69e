"""Run a model's networks over a whole kNN graph, on all processes of the job.

Shape letters: B batch, N faces, M edges, K neighbours with the face itself first, D feature dimension.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lcde.data.gallery import Gallery
from lcde.distributed import broadcast, gather, rank, world_size
from lcde.methods.method import Scores
from lcde.models.tokens import num_distinct
from lcde.progress import track

TOKENS_PER_BATCH = {"cpu": 5_120, "cuda": 655_360}  # what the caches of a CPU, the memory of a GPU, take best
EDGES_AT_A_TIME = 65_536  # whose neighbourhoods are compared


class PairNetworks(NamedTuple):
    """The inference functions of a model.

    Attributes
    ----------
    connectivity : callable
        Features (B, K, D) of the neighbours of B faces -> probability (B, K) float32 that each has the face's identity.
    edge_probability : callable, optional
        Features (B, 2K, D) of the neighbours of both ends of B edges, and which faces (B, 2K) int64 they are ->
        probability (B,) float32 that both ends are of one identity. None for a model that scores no edges.
    """

    connectivity: Callable[[Tensor], Tensor]
    edge_probability: Callable[[Tensor, Tensor], Tensor] | None = None


class GraphScorer(Scores):
    """The scores of one gallery by one model.

    In a job of several processes each makes one: rank 0 asks, then calls `dismiss`; the others `serve`.

    Parameters
    ----------
    networks : PairNetworks
    gallery : Gallery
    device : torch.device
        Where the networks are.
    dtype : torch.dtype
        Of the features that the networks take.
    show_progress : bool
    """

    def __init__(
        self,
        networks: PairNetworks,
        gallery: Gallery,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        show_progress: bool = False,
    ) -> None:
        self.networks, self.device = networks, device
        self.features = torch.from_numpy(gallery.features).to(device, dtype)
        self.indices = torch.from_numpy(gallery.graph.indices).to(device)
        self.show_progress = show_progress and rank() == 0

    def connectivity(self, first_row: int = 0) -> np.ndarray:
        """Connectivity (N - first_row, K) float32 of the faces from ``first_row`` on, not symmetrised."""
        return self._on_all_ranks("connectivity", np.arange(first_row, len(self.indices))[:, None])

    def edge_probability(self, edges: np.ndarray) -> np.ndarray:
        """Probability (M,) float32 that the two ends of each of ``edges`` (M, 2) are of one identity.

        Raises
        ------
        InputError
            Where the model scores no edges.
        """
        if self.networks.edge_probability is None:
            return super().edge_probability(edges)
        order = np.argsort(self._num_distinct(edges), kind="stable")  # so that the sets of a batch are of like sizes
        probability = np.empty(len(edges), dtype=np.float32)
        probability[order] = self._on_all_ranks("edge probabilities", edges[order])
        return probability

    def serve(self) -> None:
        """Compute this rank's share of everything that rank 0 asks for, until it calls `dismiss`."""
        while (order := broadcast(None)) is not None:
            gather(self._score_share(*order))

    def _on_all_ranks(self, what: str, items: np.ndarray) -> np.ndarray:
        broadcast((what, items))
        return np.concatenate(gather(self._score_share(what, items)))

    @torch.inference_mode()
    def _score_share(self, what: str, items: np.ndarray) -> np.ndarray:
        """Score this rank's run of the batches that one process would take, so that scores equal its to the last bit.

        ``items`` are faces (M, 1), which get connectivity (M, K), or edges (M, 2), which get probabilities (M,).
        """
        k, of_faces = self.indices.shape[1], items.shape[1] == 1
        tokens = TOKENS_PER_BATCH.get(self.device.type, TOKENS_PER_BATCH["cuda"])
        size = max(1, tokens // (k * items.shape[1]))
        starts = np.arange(0, len(items), size)
        mine = np.array_split(starts, world_size())[rank()]
        share = items[mine[0] : mine[-1] + size] if len(mine) else items[:0]
        # One array made before: small ones that outlive their batch would keep its memory from being used again.
        scores = np.empty((len(share), k) if of_faces else len(share), dtype=np.float32)
        for start in track(range(0, len(share), size), what, self.show_progress):
            batch = slice(start, start + size)
            scores[batch] = self._score(self._neighbours(share[batch]).long(), of_faces).cpu().numpy()
        return scores

    def _score(self, neighbours: Tensor, of_faces: bool) -> Tensor:
        if of_faces:
            return self.networks.connectivity(self.features[neighbours])
        assert self.networks.edge_probability is not None
        return self.networks.edge_probability(self.features[neighbours], neighbours)

    def _neighbours(self, items: np.ndarray) -> Tensor:
        """Neighbours (B, E·K) of ``items`` (B, E)."""
        return self.indices[torch.from_numpy(items).to(self.device)].flatten(1)

    def _num_distinct(self, edges: np.ndarray) -> np.ndarray:
        """How many different faces (M,) are among the neighbours of both ends of each of ``edges`` (M, 2)."""
        number = np.empty(len(edges), dtype=np.int64)
        for start in range(0, len(edges), EDGES_AT_A_TIME):
            batch = slice(start, start + EDGES_AT_A_TIME)
            number[batch] = num_distinct(self._neighbours(edges[batch])).cpu().numpy()
        return number
