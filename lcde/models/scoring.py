"""Run both networks over a whole kNN graph: features and graph stay on the device, batches are index ranges."""

from collections.abc import Iterable

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet
from lcde.models.tokens import gather_neighbourhoods

TOKENS_PER_BATCH = {"cpu": 10_240, "cuda": 655_360}  # what the caches of a CPU, the memory of a GPU, take best


class GraphScorer:
    """The networks bound to one kNN graph, as the two callables that clustering asks for."""

    def __init__(
        self, lcenet: LCENet, pcenet: PCENet, features: np.ndarray, indices: np.ndarray, show_progress: bool = False
    ) -> None:
        """``features`` (N, D) float32, ``indices`` (N, K) int32; scores on the device of ``lcenet``."""
        self.lcenet, self.pcenet = lcenet.eval(), pcenet.eval()
        self.device = next(lcenet.parameters()).device
        self.features = torch.from_numpy(features).to(self.device)
        self.indices = torch.from_numpy(indices).to(self.device)
        self.show_progress = show_progress

    @torch.inference_mode()
    def connectivity(self, first_row: int = 0) -> np.ndarray:
        """Connectivity (N - first_row, K) float32 of the faces from ``first_row`` on, not yet symmetrised."""
        scores = [
            self.lcenet.connectivity(gather_neighbourhoods(self.features, self.indices, faces)).cpu()
            for faces in self._batches(
                torch.arange(first_row, len(self.indices)), self.indices.shape[1], "connectivity"
            )
        ]
        return torch.cat(scores).numpy()

    @torch.inference_mode()
    def edge_probability(self, edges: np.ndarray) -> np.ndarray:
        """Probability (M,) float32 that the ends of each of ``edges`` (M, 2) are of one identity."""
        scores = [
            self.pcenet.edge_probability(gather_neighbourhoods(self.features, self.indices, pairs).flatten(1, 2)).cpu()
            for pairs in self._batches(torch.from_numpy(edges), 2 * self.indices.shape[1], "edge probabilities")
        ]
        return torch.cat(scores).numpy() if scores else np.empty(0, dtype=np.float32)

    def _batches(self, items: Tensor, tokens_each: int, title: str) -> Iterable[Tensor]:
        size = max(1, TOKENS_PER_BATCH.get(self.device.type, TOKENS_PER_BATCH["cuda"]) // tokens_each)
        batches = items.to(self.device).split(size) if len(items) else ()
        return track(batches, title, disable=not self.show_progress, transient=True)
