"""Run both networks over a whole kNN graph, on all processes of the job; batches are index ranges."""

import numpy as np
import torch
from torch import Tensor

from lcde.distributed import broadcast, gather, rank, world_size
from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet
from lcde.models.precision import as_dtype, fastest_dtype
from lcde.models.tokens import num_distinct
from lcde.progress import track

TOKENS_PER_BATCH = {"cpu": 5_120, "cuda": 655_360}  # what the caches of a CPU, the memory of a GPU, take best
ROWS = 65_536  # edges whose neighbourhoods are compared at a time


class GraphScorer:
    """The networks bound to one kNN graph, as the two callables that clustering asks for.

    In a job of several processes each makes one: rank 0 calls it, then `dismiss`; the others `serve`, which scores
    their shares of what rank 0 asks for.
    """

    def __init__(
        self,
        lcenet: LCENet,
        pcenet: PCENet,
        features: np.ndarray,
        indices: np.ndarray,
        precision: str = "float32",
        show_progress: bool = False,
    ) -> None:
        """Score on the device of ``lcenet``.

        ``features`` (N, D) float32, ``indices`` (N, K) int32; ``precision`` is "float32", or "auto" for bfloat16
        where the device gains from it.
        """
        self.device = next(lcenet.parameters()).device
        dtype = fastest_dtype(self.device) if precision == "auto" else torch.float32
        self.lcenet, self.pcenet = (as_dtype(network.eval(), dtype) for network in (lcenet, pcenet))
        self.features = torch.from_numpy(features).to(self.device, dtype)
        self.indices = torch.from_numpy(indices).to(self.device)
        self.show_progress = show_progress and rank() == 0

    def connectivity(self, first_row: int = 0) -> np.ndarray:
        """Connectivity (N - first_row, K) float32 of the faces from ``first_row`` on, not yet symmetrised."""
        return self._on_all_ranks("connectivity", np.arange(first_row, len(self.indices)))

    def edge_probability(self, edges: np.ndarray) -> np.ndarray:
        """Probability (M,) float32 that the ends of each of ``edges`` (M, 2) are of one identity."""
        order = np.argsort(self._num_distinct(edges), kind="stable")  # so that the sets of a batch are of like sizes
        probability = np.empty(len(edges), dtype=np.float32)
        probability[order] = self._on_all_ranks("edge probabilities", edges[order])
        return probability

    def serve(self) -> None:
        """Score this rank's share of everything until rank 0 calls `dismiss`."""
        while (order := broadcast(None)) is not None:
            gather(self._score_share(*order))

    def dismiss(self) -> None:
        """Let the other ranks leave `serve`."""
        broadcast(None)

    def _on_all_ranks(self, what: str, items: np.ndarray) -> np.ndarray:
        broadcast((what, items))
        return np.concatenate(gather(self._score_share(what, items)))

    @torch.inference_mode()
    def _score_share(self, what: str, items: np.ndarray) -> np.ndarray:
        """This rank's run of the batches that one process would take: its scores are the same to the last bit."""
        k = self.indices.shape[1]
        network, tokens_each, shape = {
            "connectivity": (self._connectivity, k, (k,)),
            "edge probabilities": (self._edge_probability, 2 * k, ()),
        }[what]
        size = max(1, TOKENS_PER_BATCH.get(self.device.type, TOKENS_PER_BATCH["cuda"]) // tokens_each)
        starts = np.arange(0, len(items), size)
        mine = np.array_split(starts, world_size())[rank()]
        share = items[mine[0] : mine[-1] + size] if len(mine) else items[:0]
        # One array made before: small ones that outlive their batch would keep its memory from being used again.
        scores = np.empty((len(share), *shape), dtype=np.float32)
        for start in track(range(0, len(share), size), what, self.show_progress):
            batch = torch.from_numpy(share[start : start + size]).to(self.device)
            scores[start : start + size] = network(self.indices[batch].long()).cpu().numpy()
        return scores

    def _connectivity(self, faces: Tensor) -> Tensor:
        """Neighbours (B, K) of B faces → (B, K)."""
        return self.lcenet.connectivity(self.features[faces])

    def _edge_probability(self, faces: Tensor) -> Tensor:
        """Neighbours (B, 2, K) of both ends of B edges → (B,)."""
        faces = faces.flatten(1)
        return self.pcenet.edge_probability(self.features[faces], faces)

    def _num_distinct(self, edges: np.ndarray) -> np.ndarray:
        """How many different faces (M,) are among the neighbours of both ends of each of ``edges`` (M, 2)."""
        number = np.empty(len(edges), dtype=np.int64)
        for start in range(0, len(edges), ROWS):
            faces = self.indices[torch.from_numpy(edges[start : start + ROWS]).to(self.device)].flatten(1)
            number[start : start + ROWS] = num_distinct(faces).cpu().numpy()
        return number
