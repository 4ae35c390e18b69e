"""A gallery: the faces that are clustered together, and their kNN graph.

Shape letters used everywhere: N faces, D feature dimension, K neighbours counting the face itself.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from threadpoolctl import threadpool_limits

from lcde.errors import InputError

ROWS = 4_096  # rows handled at a time: millions of faces leave no room for a second copy


def row_blocks(end: int, start: int = 0, size: int | None = None) -> Iterator[slice]:
    """Slices of at most ``size`` rows, by default `ROWS`, that together cover the rows from ``start`` to ``end``."""
    return (slice(first, min(first + (size or ROWS), end)) for first in range(start, end, size or ROWS))


def fill_in_threads(fill: Callable[[slice], None], blocks: Iterable[slice]) -> None:
    """Call ``fill`` for each of ``blocks``, on all threads that PyTorch uses: NumPy and SciPy work side by side.

    Matrix products take one thread each: otherwise every one of them would start a thread for each core.
    """
    import torch  # for its number of threads

    left, lock, threads = iter(blocks), Lock(), torch.get_num_threads()

    def take_turns(_: int) -> None:
        while True:
            with lock:
                block = next(left, None)
            if block is None:
                return
            fill(block)

    # Not a task for each block, of which there may be millions.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(take_turns, range(threads)))


@dataclass(frozen=True)
class KNNGraph:
    """The K nearest neighbours of each of N faces by cosine similarity.

    Attributes
    ----------
    indices : (N, K) int32
        Neighbours in descending order of similarity; column 0 is the face itself, no face occurs twice in a row.
    similarities : (N, K) float32
        Cosine similarities to them.
    """

    indices: np.ndarray
    similarities: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def k(self) -> int:
        """Neighbours of each face, the face itself counted."""
        return int(self.indices.shape[1])


@dataclass(frozen=True)
class Gallery:
    """Faces that are clustered together.

    Attributes
    ----------
    name : str
        Name of the part, such as "part1_test".
    features : (N, D) float32
        Embeddings of unit L2 norm.
    graph : KNNGraph
        Their kNN graph.
    labels_true : (N,) int64, optional
        Identities numbered from 0, None where they are unknown.
    images : sequence of Path, optional
        Image file of each face.
    held_out : bool
        Whether these are identities held out of a training part: they choose checkpoints, thresholds and jobs of a
        sweep, and their scores are not results.
    knn_seconds : float
        Time it took to build the graph, 0 where it was read from a file.
    union : Gallery, optional
        These faces followed by a reference, faces of other people, which are clustered together; results leave the
        reference out.
    """

    name: str
    features: np.ndarray
    graph: KNNGraph
    labels_true: np.ndarray | None = None
    images: Sequence[Path] | None = None
    held_out: bool = False
    knn_seconds: float = 0.0
    union: "Gallery | None" = None

    def __len__(self) -> int:
        return len(self.features)


def require_part_name(name: object) -> None:
    """Raise `InputError` unless ``name`` can be that of a file, which another folder's is not."""
    if not isinstance(name, str) or not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise InputError(f"{name!r} cannot name a part; part names are text without / and \\, as files have.")
