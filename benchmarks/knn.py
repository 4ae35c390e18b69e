"""Search of nearest neighbours: exact, whose time grows with N², and approximate, for millions of faces."""

import contextlib
import io
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.graphs import identity_features, labelings
from benchmarks.measure import Case, Options
from lcde.data.search import Search, approximate_search, exact_search, recall

SEED = 0
FEATURE_DIM = 256  # as on MS1M
QUERIES = 4_096  # faces whose neighbours are searched among all N; the index is built before
SAMPLES = 100  # queries whose neighbours are compared with those by brute force


def cases(options: Options) -> list[Case]:
    """Both searches on growing N."""
    searches = {"exact": exact_search, "approximate": approximate_search}
    return [
        Case(
            "knn",
            f"kNN of {QUERIES:,} faces",
            size,
            {name: partial(_search, size, options.k, search) for name, search in searches.items()},
        )
        for size in options.sizes
    ]


def _search(num_faces: int, k: int, make: Callable[[np.ndarray, int], Search]) -> Callable[[], dict[str, float]]:
    features = identity_features(labelings(num_faces, SEED)[0], FEATURE_DIM, SEED)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):  # the approximate search prints its recall
        search = make(features, k)
    seconds = time.perf_counter() - start
    found, _ = search(features[:SAMPLES])
    expected = np.stack([np.argpartition(-(features @ query), k)[:k] for query in features[:SAMPLES]])
    figures = {"recall": recall(found, expected), "seconds to build": seconds}

    def job() -> dict[str, float]:
        search(features[:QUERIES])
        return figures

    return job
