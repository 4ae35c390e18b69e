"""Scores of a model kept by content, so that other thresholds cost no second pass of its networks."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from pytorch_lightning import LightningModule

from lcde.data.gallery import Gallery
from lcde.files import UNREADABLE, write_atomically
from lcde.methods.method import Scores
from lcde.models.scoring import GraphScorer


class CachedScores(Scores):
    """The scores of a `GraphScorer`, kept in files.

    They are those of rank 0; the other ranks serve with a `GraphScorer`. A lock lets concurrent jobs wait for the one
    that computes; the system releases it when a job is killed.

    Parameters
    ----------
    make_scorer : callable
        () -> `GraphScorer`; called when a score is asked for that is not kept, once at most.
    folder : Path
    key : str
        Beginning of the files' names, the `fingerprint` of everything that the scores depend on.
    """

    def __init__(self, make_scorer: Callable[[], GraphScorer], folder: Path, key: str) -> None:
        self.scorer = functools.cache(make_scorer)
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / f"{key}.lock")
        self.connectivity_file = folder / f"{key}.connectivity.npy"
        self.edges_file = folder / f"{key}.edges.npz"

    def connectivity(self, first_row: int = 0) -> np.ndarray:
        """As `GraphScorer.connectivity`; all faces are scored, then kept."""
        with self.lock:
            try:
                stored = np.load(self.connectivity_file)
            except UNREADABLE:  # missing or damaged
                stored = self.scorer().connectivity()
                write_atomically(self.connectivity_file, lambda file: np.save(file, stored))
        return stored[first_row:]

    def edge_probability(self, edges: np.ndarray) -> np.ndarray:
        """As `GraphScorer.edge_probability`; only edges that were never asked about go to the network."""
        wanted = edges[:, 0] << 32 | edges[:, 1]
        with self.lock:
            try:
                with np.load(self.edges_file) as stored:
                    keys, probability = stored["keys"], stored["probability"]
            except UNREADABLE:
                keys, probability = np.empty(0, np.int64), np.empty(0, np.float32)
            new = ~np.isin(wanted, keys)
            if new.any():
                keys = np.append(keys, wanted[new])
                probability = np.append(probability, self.scorer().edge_probability(edges[new]))
                order = np.argsort(keys)
                keys, probability = keys[order], probability[order]
                write_atomically(self.edges_file, lambda file: np.savez(file, keys=keys, probability=probability))
        return probability[np.searchsorted(keys, wanted)]


def fingerprint(model: LightningModule, gallery: Gallery, dtype: torch.dtype) -> str:
    """A hash of all that scores depend on: class, hyper parameters and weights of ``model``, precision, ``gallery``."""
    digest = hashlib.sha256()  # processors have instructions for it
    digest.update(f"{type(model).__module__}.{type(model).__qualname__} {sorted(model.hparams.items())}".encode())
    digest.update(f"{dtype}".encode())
    arrays = {name: tensor.float().cpu().numpy() for name, tensor in model.state_dict().items()}
    arrays |= {"features": gallery.features, "graph": gallery.graph.indices}
    for name, array in arrays.items():
        digest.update(f"{name} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
