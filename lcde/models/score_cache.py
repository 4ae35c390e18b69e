"""Network outputs kept by content, so that other thresholds cost no second pass of the networks."""

import hashlib
from pathlib import Path

import numpy as np
from filelock import FileLock

from lcde.data.formats import UNREADABLE, write_atomically
from lcde.models.scoring import GraphScorer


class CachedScores:
    """The two callables of a `GraphScorer`, whose answers are kept in ``folder``.

    The files' names are a hash of all that the answers hang on: weights, features, graph and precision. A lock lets
    concurrent jobs wait for the one that computes; the system releases it when a job is killed.
    """

    def __init__(self, scorer: GraphScorer, folder: Path) -> None:
        self.scorer = scorer
        name = fingerprint(scorer)
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / f"{name}.lock")
        self.connectivity_file = folder / f"{name}.connectivity.npy"
        self.edges_file = folder / f"{name}.edges.npz"

    def connectivity(self) -> np.ndarray:
        """As `GraphScorer.connectivity` of all faces."""
        with self.lock:
            stored = _load(self.connectivity_file)
            if stored is None:
                stored = self.scorer.connectivity()
                write_atomically(self.connectivity_file, lambda file: np.save(file, stored))
        return stored

    def edge_probability(self, edges: np.ndarray) -> np.ndarray:
        """As `GraphScorer.edge_probability`; only edges that were never asked about go to the network."""
        wanted = edges[:, 0] << 32 | edges[:, 1]
        with self.lock:
            keys, probability = _load(self.edges_file) or (np.empty(0, np.int64), np.empty(0, np.float32))
            new = ~np.isin(wanted, keys)
            if new.any():
                keys = np.append(keys, wanted[new])
                probability = np.append(probability, self.scorer.edge_probability(edges[new]))
                order = np.argsort(keys)
                keys, probability = keys[order], probability[order]
                write_atomically(self.edges_file, lambda file: np.savez(file, keys=keys, probability=probability))
        return probability[np.searchsorted(keys, wanted)]


def fingerprint(scorer: GraphScorer) -> str:
    """A hash of the weights, in their precision, the features and the graph of ``scorer``."""
    digest = hashlib.blake2b(digest_size=16)
    for network in (scorer.lcenet, scorer.pcenet):
        digest.update(str(network.encoder.layers[0].self_attn.nhead).encode())
        for name, tensor in network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.float().cpu().numpy().data)
    for tensor in (scorer.features.float(), scorer.indices):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.cpu().numpy().data)
    return digest.hexdigest()


def _load(path: Path) -> np.ndarray | tuple[np.ndarray, np.ndarray] | None:
    """The array of an ``.npy`` or both of an ``.npz`` file, None where it is missing or damaged."""
    try:
        stored = np.load(path)
        return stored if path.suffix == ".npy" else (stored["keys"], stored["probability"])
    except UNREADABLE:
        return None
