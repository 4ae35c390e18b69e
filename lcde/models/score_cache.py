"""Scores of a model kept by content, so that other thresholds do not run its networks again."""

import contextlib
import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import Timeout
from pytorch_lightning import LightningModule

from lcde.data.gallery import Gallery, KNNGraph
from lcde.errors import InputError
from lcde.files import file_backed, map_array, read_array, require_writable, shared_lock, write_atomically
from lcde.methods.method import Scores
from lcde.models.scoring import GraphScorer

VERSION = 1  # of what networks compute: with another one, kept scores are computed anew
FILES = re.compile(r"([0-9a-f]{64})\.(connectivity|edges|rows-\d+)\.npz")  # their names


class CachedScores(Scores):
    """The scores of a `GraphScorer`, kept in files as they are computed: a job that was killed goes on from there.

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
        require_writable(folder)
        self.folder, self.key, self.lock = folder, key, shared_lock(folder / f"{key}.lock")
        self.connectivity_file = folder / f"{key}.connectivity.npz"
        self.edges_file = folder / f"{key}.edges.npz"

    def connectivity(self, first_row: int = 0) -> np.ndarray:
        """As `GraphScorer.connectivity`; all faces are scored, then kept."""
        with self.lock:
            try:
                stored = self._stored_connectivity()
            except Exception:  # missing or damaged
                self._score_faces()
                stored = self._stored_connectivity()
            with contextlib.suppress(PermissionError):  # of a file that is another user's
                os.utime(self.connectivity_file)  # for `keep_within`
            temporary = self.folder.glob(f".{self.key}.*")  # of jobs killed while they wrote: no other has the lock
            for left in (*self._chunk_files(), *temporary):
                left.unlink(missing_ok=True)
        return stored[first_row:]

    def _stored_connectivity(self) -> np.ndarray:
        with np.load(self.connectivity_file) as archive:  # has checksums
            return map_array(self.connectivity_file, archive.zip, "connectivity")

    def _score_faces(self) -> None:
        """Keep the connectivity (N, K) of all faces: first each chunk, where those of a killed job are read, then all.

        Until all are scored, they are in a temporary file: memory would have to hold them beside the symmetrised ones.
        """
        scorer = self.scorer()
        connectivity = file_backed(self.folder, tuple(scorer.indices.shape), np.float32)
        missing = np.ones(len(connectivity), dtype=bool)
        for file in self._chunk_files():
            with contextlib.suppress(Exception), np.load(file) as chunk:
                rows, scores = (read_array(chunk.zip, name) for name in ("rows", "connectivity"))
                connectivity[rows] = scores
                missing[rows] = False
        faces = np.flatnonzero(missing)
        for positions, scores in scorer.chunks(faces[:, None], len(missing) - len(faces)):
            rows = faces[positions]
            connectivity[rows] = scores
            missing[rows] = False
            if missing.any():  # the last chunk is kept with the others at once
                write = functools.partial(np.savez, rows=rows, connectivity=scores)
                write_atomically(self.folder / f"{self.key}.rows-{rows[0]}.npz", write)
        write_atomically(self.connectivity_file, functools.partial(np.savez, connectivity=connectivity))

    def _chunk_files(self) -> Iterator[Path]:
        return self.folder.glob(f"{self.key}.rows-*.npz")

    def embedding(self) -> np.ndarray:
        """As `GraphScorer.embedding`, which takes little time and is not kept."""
        return self.scorer().embedding()

    def linkage(self, features: np.ndarray, graph: KNNGraph) -> np.ndarray:
        """As `GraphScorer.linkage`, which is not kept."""
        return self.scorer().linkage(features, graph)

    def edge_probability(self, edges: np.ndarray) -> np.ndarray:
        """As `GraphScorer.edge_probability`; only edges that were never asked about go to the network."""
        wanted = edges[:, 0] << 32 | edges[:, 1]
        with self.lock:
            try:
                with np.load(self.edges_file) as stored:
                    keys, probability = (read_array(stored.zip, name) for name in ("keys", "probability"))
            except Exception:
                keys, probability = np.empty(0, np.int64), np.empty(0, np.float32)
            # Each once: what a chunk has scored must not be missing from the batches after it.
            new = np.sort(np.unique(wanted, return_index=True)[1])
            new = new[~np.isin(wanted[new], keys)]
            if len(new):
                for positions, scores in self.scorer().chunks(edges[new], len(wanted) - len(new)):
                    keys, probability = np.append(keys, wanted[new[positions]]), np.append(probability, scores)
                    order = np.argsort(keys)
                    keys, probability = keys[order], probability[order]
                    write_atomically(self.edges_file, functools.partial(np.savez, keys=keys, probability=probability))
        return probability[np.searchsorted(keys, wanted)]


def require_size(gigabytes: object) -> None:
    """Raise `InputError` unless ``gigabytes`` can be the size of the cache."""
    if not isinstance(gigabytes, int | float) or not gigabytes >= 0:
        raise InputError(f"score_cache_gb={gigabytes} must be a number of at least 0.")


def keep_within(folder: Path, gigabytes: float) -> None:
    """Delete scores from ``folder``, those used longest ago first, until it holds at most so many ``gigabytes``.

    The scores used last stay in any case, and so do those that another job has locked.
    """
    files: dict[str, list[Path]] = {}
    size, last_use = Counter[str](), Counter[str]()
    for file in folder.iterdir():
        if name := FILES.fullmatch(file.name):
            key = name[1]
            with contextlib.suppress(FileNotFoundError):  # another job has deleted it
                size[key] += file.stat().st_size
                last_use[key] = max(last_use[key], file.stat().st_mtime_ns)
                files.setdefault(key, []).append(file)
    left = size.total()
    for key in sorted(files, key=last_use.__getitem__)[:-1]:
        if left <= gigabytes * 1e9:
            break
        with contextlib.suppress(Timeout, PermissionError), shared_lock(folder / f"{key}.lock", timeout=0):
            for file in files[key]:
                file.unlink(missing_ok=True)
            left -= size[key]


def fingerprint(model: LightningModule, gallery: Gallery, dtype: torch.dtype) -> str:
    """A hash of all that scores depend on: class, settings, weights and device of ``model``, precision, ``gallery``.

    Devices round differently, and on a CPU the scores are those of the published program.
    """
    digest = hashlib.sha256()  # processors have instructions for it
    digest.update(f"{type(model).__module__}.{type(model).__qualname__} {sorted(model.hparams.items())}".encode())
    digest.update(f"{VERSION} {model.device.type} {dtype}".encode())
    arrays = {name: tensor.float().cpu().numpy() for name, tensor in model.state_dict().items()}
    arrays |= {"features": gallery.features, "graph": gallery.graph.indices}
    for name, array in arrays.items():
        digest.update(f"{name} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
