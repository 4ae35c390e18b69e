"""Run a model's networks over a whole kNN graph, on all processes of the job.

Shape letters: B batch, N faces, M edges, K neighbours with the face itself first, D feature dimension.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from lcde.data.gallery import Gallery, KNNGraph, row_blocks
from lcde.distributed import broadcast, gather, rank, world_size
from lcde.methods.method import Scores
from lcde.models.tokens import num_distinct
from lcde.progress import counter

TOKENS_PER_BATCH = {"cpu": 5_120, "cuda": 655_360}  # what the caches of a CPU, the memory of a GPU, take best
BATCHES_PER_CHUNK = 128  # of each process: half a minute on a CPU, seconds on a GPU
EDGES_AT_A_TIME = 65_536  # whose neighbourhoods are compared
ROOM = 0.8  # of a device's free memory that features and graph may take; networks and batches need the rest

Output = TypeVar("Output")


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """``array`` on ``device``; on a CPU it is not copied and may lie in a read-only file: do not assign to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


class DeviceGraph(NamedTuple):
    """Features and kNN graph of a gallery on a device.

    Attributes
    ----------
    features : (N, D) float32
    indices : (N, K) int32
    labels_true : (N,) int64, optional
        Identities, in training alone.
    rotation : (D, D) float32, optional
        By which training rotates the features of a step.
    """

    features: Tensor
    indices: Tensor
    labels_true: Tensor | None = None
    rotation: Tensor | None = None

    def features_of(self, faces: Tensor) -> Tensor:
        """Features (..., D) of ``faces`` (...), rotated."""
        found = self.features[faces.long()]
        return found if self.rotation is None else found @ self.rotation


class PairNetworks(NamedTuple):
    """The inference functions of a model.

    Attributes
    ----------
    connectivity : callable, optional
        Features (B, K, D) of the neighbours of B faces -> probability (B, K) float32 that each has the face's identity.
        None for a model that gives none.
    edge_probability : callable, optional
        Features (B, 2K, D) of the neighbours of both ends of B edges, and which faces (B, 2K) int64 they are ->
        probability (B,) float32 that both ends are of one identity. None for a model that scores no edges.
    embedding : callable, optional
        Features (B, K, D) of the neighbours of B faces -> values (B, E) of each face, which the functions above then
        read in place of its features.
    connectivity_in_graph : callable, optional
        In place of ``connectivity`` for networks that read more than the neighbours: graph, faces (B,) int64 ->
        probability (B, K) float32.
    embedding_in_graph : callable, optional
        In place of ``embedding`` for such networks: graph -> values (N, E) of all faces.
    linkage : callable, optional
        Features (M, E), neighbours (M, K) and similarities (M, K) of nodes that a rule made -> probability (M, K).
    """

    connectivity: Callable[[Tensor], Tensor] | None = None
    edge_probability: Callable[[Tensor, Tensor], Tensor] | None = None
    embedding: Callable[[Tensor], Tensor] | None = None
    connectivity_in_graph: Callable[[DeviceGraph, Tensor], Tensor] | None = None
    embedding_in_graph: Callable[[DeviceGraph], Tensor] | None = None
    linkage: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


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
        self.networks, self.device, self.dtype = networks, device, dtype
        in_graph = networks.connectivity_in_graph is not None or networks.embedding_in_graph is not None
        # Where batches are gathered from; a CPU has no room for a copy of another type.
        self.home = device if in_graph or _has_room(device, gallery, dtype) else torch.device("cpu")
        kept_as = dtype if in_graph or self.home.type != "cpu" else torch.float32
        self.features = to_device(gallery.features, self.home).to(kept_as)
        self.indices = to_device(gallery.graph.indices, self.home)
        self.show_progress = show_progress and rank() == 0
        self.pieces = 1  # that each batch is scored in, more where the device's memory does not suffice for a whole one
        if networks.embedding is not None or networks.embedding_in_graph is not None:
            self.features = self._embedded()
            self.dtype = self.features.dtype

    @torch.inference_mode()
    def _embedded(self) -> Tensor:
        """Values (N, E) of all faces; every rank computes them all."""
        if self.networks.embedding_in_graph is not None:
            return self.networks.embedding_in_graph(DeviceGraph(self.features, self.indices))
        embed, rows = self.networks.embedding, np.arange(len(self.indices))[:, None]
        assert embed is not None
        blocks = row_blocks(len(rows), size=self._batch_size(rows))

        def values(items: Tensor) -> Tensor:
            return embed(self._features_of(self._neighbours(items).long())).to(self.home)

        return torch.cat([piece for block in blocks for piece in self._in_pieces(rows[block], values)])

    def embedding(self) -> np.ndarray:
        """What the model makes of each face: (N, E) float32."""
        if self.networks.embedding is None and self.networks.embedding_in_graph is None:
            return super().embedding()
        return self.features.float().cpu().numpy()

    @torch.inference_mode()
    def linkage(self, features: np.ndarray, graph: KNNGraph) -> np.ndarray:
        """As `Scores.linkage`, computed by this process alone."""
        if self.networks.linkage is None:
            return super().linkage(features, graph)
        arrays = features, graph.indices, graph.similarities
        return self.networks.linkage(*(torch.from_numpy(array).to(self.device) for array in arrays)).cpu().numpy()

    def connectivity(self, first_row: int = 0) -> np.ndarray:
        """Connectivity (N - first_row, K) float32 of the faces from ``first_row`` on, not symmetrised."""
        faces = np.arange(first_row, len(self.indices))[:, None]
        if self.networks.connectivity is None and self.networks.connectivity_in_graph is None:
            return super().connectivity(first_row)
        connectivity = np.empty((len(faces), self.indices.shape[1]), dtype=np.float32)
        for positions, scores in self.chunks(faces):
            connectivity[positions] = scores
        return connectivity

    def edge_probability(self, edges: np.ndarray) -> np.ndarray:
        """Probability (M,) float32 that the two ends of each of ``edges`` (M, 2) are of one identity.

        Raises
        ------
        InputError
            Where the model scores no edges.
        """
        probability = np.empty(len(edges), dtype=np.float32)
        for positions, scores in self.chunks(edges):
            probability[positions] = scores
        return probability

    def chunks(self, items: np.ndarray, done: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Score ``items`` some at a time, so that finished ones can be kept.

        Chunks are whole batches, and the batches of those items that are left after any number of chunks are those that
        would have come next: a pass that goes on later gives the same scores to the last bit.

        Parameters
        ----------
        items : (M, 1) or (M, 2) int64
            Faces, which get connectivity, or edges, which get probabilities.
        done : int
            How many others were scored before, for the progress bar.

        Yields
        ------
        positions : (m,) int64
            Which of ``items`` are scored.
        scores : (m, K) or (m,) float32

        Raises
        ------
        InputError
            Where ``items`` are edges and the model scores none.
        """
        if items.shape[1] == 1:
            what, order = "connectivity", np.arange(len(items))
        else:
            if self.networks.edge_probability is None:
                super().edge_probability(items)
            # So that the sets of a batch are of like sizes.
            what, order = "edge probabilities", np.argsort(self._num_distinct(items), kind="stable")
        size = BATCHES_PER_CHUNK * world_size() * self._batch_size(items)
        with counter(what, done + len(items), done, self.show_progress) as advance:
            for start in range(0, len(items), size):
                positions = order[start : start + size]
                broadcast(items[positions])
                yield positions, np.concatenate(gather(self._score_share(items[positions], advance)))

    def serve(self) -> None:
        """Compute this rank's share of everything that rank 0 asks for, until it calls `dismiss`."""
        while (items := broadcast(None)) is not None:
            gather(self._score_share(items, lambda number: None))

    def _batch_size(self, items: np.ndarray) -> int:
        tokens = TOKENS_PER_BATCH.get(self.device.type, TOKENS_PER_BATCH["cuda"])
        return max(1, tokens // (self.indices.shape[1] * items.shape[1]))

    @torch.inference_mode()
    def _score_share(self, items: np.ndarray, advance: Callable[[int], None]) -> np.ndarray:
        """Score this rank's run of the batches that one process would take, so that scores equal its to the last bit.

        ``items`` are faces (M, 1), which get connectivity (M, K), or edges (M, 2), which get probabilities (M,).
        ``advance`` is told how many items all ranks together have scored since the last call, approximately.
        """
        of_faces, size = items.shape[1] == 1, self._batch_size(items)
        starts = np.arange(0, len(items), size)
        mine = np.array_split(starts, world_size())[rank()]
        share = items[mine[0] : mine[-1] + size] if len(mine) else items[:0]

        def score(items: Tensor) -> np.ndarray:
            return self._score(items, of_faces).cpu().numpy()

        # One array made before: small ones that outlive their batch would keep its memory from being used again.
        scores = np.empty((len(share), self.indices.shape[1]) if of_faces else len(share), dtype=np.float32)
        for start in range(0, len(share), size):
            batch = slice(start, start + size)
            scores[batch] = np.concatenate(self._in_pieces(share[batch], score))
            advance(len(scores[batch]) * world_size())
        return scores

    def _in_pieces(self, batch: np.ndarray, compute: Callable[[Tensor], Output]) -> list[Output]:
        """What ``compute`` gives for each piece (b, E), where the graph is, of a ``batch`` (B, E) of items.

        Which batches a rank takes does not depend on the memory of the ranks, only in how many pieces it scores them.
        """
        while True:
            size = -(-len(batch) // self.pieces)
            try:
                items = torch.from_numpy(batch).to(self.home)
                return [compute(items[rows]) for rows in row_blocks(len(batch), size=size)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            if self.pieces == 1:
                reason = f"the memory of {self.device} does not suffice for a batch of {len(batch)} neighbourhoods"
                warnings.warn(f"{reason}; batches are halved from now on, until they fit.", stacklevel=2)
            self.pieces *= 2  # out of the except clause, where the failed computation still holds its memory

    def _score(self, items: Tensor, of_faces: bool) -> Tensor:
        if of_faces and self.networks.connectivity_in_graph is not None:
            return self.networks.connectivity_in_graph(DeviceGraph(self.features, self.indices), items[:, 0])
        neighbours = self._neighbours(items).long()
        if of_faces:
            assert self.networks.connectivity is not None
            return self.networks.connectivity(self._features_of(neighbours))
        assert self.networks.edge_probability is not None
        return self.networks.edge_probability(self._features_of(neighbours), neighbours.to(self.device))

    def _features_of(self, faces: Tensor) -> Tensor:
        """Features (..., D) of ``faces`` (...) int64, on the device."""
        return self.features[faces].to(self.device, self.dtype)

    def _neighbours(self, items: Tensor) -> Tensor:
        """Neighbours (B, E·K) of ``items`` (B, E)."""
        return self.indices[items].flatten(1)

    def _num_distinct(self, edges: np.ndarray) -> np.ndarray:
        """How many different faces (M,) are among the neighbours of both ends of each of ``edges`` (M, 2)."""
        number = np.empty(len(edges), dtype=np.int64)
        for start in range(0, len(edges), EDGES_AT_A_TIME):
            batch = slice(start, start + EDGES_AT_A_TIME)
            neighbours = self._neighbours(torch.from_numpy(edges[batch]).to(self.home))
            number[batch] = num_distinct(neighbours).cpu().numpy()
        return number


def _has_room(device: torch.device, gallery: Gallery, dtype: torch.dtype) -> bool:
    """Whether features, as ``dtype``, and graph of ``gallery`` fit into the memory of ``device``; a warning if not."""
    if device.type != "cuda":
        return True
    needed = gallery.features.size * dtype.itemsize + gallery.graph.indices.nbytes
    free, _ = torch.cuda.mem_get_info(device)
    if needed > ROOM * free:
        reason = f"features and kNN graph of {gallery.name} take {needed / 1e9:.3g} GB"
        remedy = "they stay in main memory, and batches are copied to the device"
        warnings.warn(f"{reason}, but {device} has only {free / 1e9:.3g} GB free; {remedy}.", stacklevel=2)
    return needed <= ROOM * free
