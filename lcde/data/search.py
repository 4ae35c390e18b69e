"""Nearest neighbours by cosine similarity: exact on CPU or GPU, approximate for millions of faces on a CPU."""

from collections.abc import Callable

import numpy as np
from rich.console import Console

from lcde.data.gallery import fill_in_threads, row_blocks

# Unit queries (Q, D) → indices (Q, k) of the nearest of at least k faces, and similarities (Q, k) float32.
Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# Exact search compares all pairs: an hour for a million faces of D=256 on two cores, more than a day for five million.
EXACT_UP_TO = 1_000_000
# Recall of approximate search on 1 and on 5.2 million faces of `benchmarks rehearsal` (D=256, K=80): with 512 cells and
# 4 candidates 90 and 78 %, with 1024 and 4 92 and 83 %, with 1024 and 8 96 and 88 %. On 5.2 million, 2048 and 8 give
# 92 % and take 1.5 times as long.
PROBES = 1024  # cells searched for each query
CANDIDATES = 8  # faces compared in full for each neighbour wanted
SAMPLES = 500  # queries on which the recall is measured
GATHERED_ROWS = 128  # whose neighbours' features are gathered at a time: they stay in the cache
QUERIES, FACES_PER_CHUNK = 4_096, 131_072  # compared at a time on a GPU: 2 GB of similarities


def choose_search(features: np.ndarray, k: int, num_queries: int) -> Search:
    """Search among unit ``features`` (N, D): exact on a GPU or where a CPU takes hours at most, else approximate."""
    import faiss
    import torch

    forked = torch.utils.data.get_worker_info() is not None  # a data loader's process, which cannot use a GPU
    faiss_gpus = 0 if forked else getattr(faiss, "get_num_gpus", lambda: 0)()
    if torch.cuda.is_available() and not (faiss_gpus or forked):
        return torch_search(features, k, "cuda")
    exact = faiss_gpus or num_queries * len(features) <= EXACT_UP_TO**2
    return exact_search(features, k) if exact else approximate_search(features, k)


def exact_search(features: np.ndarray, k: int) -> Search:
    """Compare all pairs with FAISS, on GPUs if it can use them, else without a copy of ``features``."""
    import faiss

    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        return lambda queries: faiss.knn(queries, features, k, metric=faiss.METRIC_INNER_PRODUCT)[::-1]
    index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(features.shape[1]))
    index.add(features)
    return lambda queries: index.search(queries, k)[::-1]


def torch_search(features: np.ndarray, k: int, device: str) -> Search:
    """Compare all pairs with PyTorch, for FAISS without GPU support."""
    import torch
    from torch.nn import functional as F

    num_faces, group = len(features), max(1, int((FACES_PER_CHUNK / k) ** 0.5))
    step = FACES_PER_CHUNK // group * group
    faces = F.pad(torch.tensor(features, device=device), (0, 0, 0, -num_faces % group))

    def nearest(queries: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest of the chunk from ``start`` on.

        The k largest similarities lie in the k groups with the largest maxima, so that few need be sorted.
        """
        similarities = queries @ faces[start : start + step].T
        similarities[:, num_faces - start :] = -torch.inf  # padding, in the last chunk
        groups = similarities.view(len(queries), group, -1)  # a column is a group
        kept = groups.amax(dim=1).topk(min(k, groups.shape[2])).indices  # (Q, k)
        among = groups.gather(2, kept[:, None].expand(-1, group, -1)).flatten(1)
        values, places = among.topk(min(k, among.shape[1]))
        row, column = places // kept.shape[1], kept.gather(1, places % kept.shape[1])
        return values, start + row * groups.shape[2] + column

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        indices = np.empty((len(queries), k), dtype=np.int64)
        similarities = np.empty((len(queries), k), dtype=np.float32)
        for rows in row_blocks(len(queries), size=QUERIES):
            block = torch.tensor(queries[rows], device=device)
            found = [nearest(block, start) for start in range(0, len(faces), step)]
            values, columns = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
            values, places = values.topk(k)
            similarities[rows], indices[rows] = values.cpu(), columns.gather(1, places).cpu()
        return indices, similarities

    return search


def approximate_search(features: np.ndarray, k: int) -> Search:
    """Inverted file with 4-bit product quantisation and exact re-ranking (FAISS IVF-PQ); prints the recall.

    The cells nearest to a query are searched by codes, and the best candidates are compared in full. The neighbours do
    not depend on the number of threads, unlike those of an HNSW graph, which is about as fast. The index holds the
    codes, a sixteenth of ``features``, and no copy of them.
    """
    import faiss

    num_faces, dim = features.shape
    num_cells = min(int(4 * num_faces**0.5), num_faces // 64)
    num_codes = dim // 2 if dim % 2 == 0 else dim
    index = faiss.index_factory(dim, f"IVF{num_cells},PQ{num_codes}x4fs", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = 64  # more training faces hardly change the cells
    index.train(features)
    index.add(features)
    parameters, exact = faiss.IVFSearchParameters(nprobe=min(PROBES, num_cells)), exact_search(features, k)

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        candidates = index.search(queries, CANDIDATES * k, params=parameters)[1]
        similarities = edge_similarities(features, candidates, queries)
        similarities[candidates < 0] = -np.inf  # the cells searched hold fewer faces
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        indices, similarities = (np.take_along_axis(array, order, axis=1) for array in (candidates, similarities))
        short = indices[:, -1] < 0
        if short.any():
            indices[short], similarities[short] = exact(queries[short])
        return indices, similarities

    sample = features[np.unique(np.linspace(0, num_faces - 1, SAMPLES).astype(int))]
    share = recall(search(sample)[0], exact(sample)[0])
    Console().print(f"approximate kNN graph: recall@{k} {share:.1%}, measured on {len(sample)} faces")
    return search


def edge_similarities(features: np.ndarray, indices: np.ndarray, queries: np.ndarray | None = None) -> np.ndarray:
    """Cosine similarities of faces to their neighbours.

    Parameters
    ----------
    features : (N, D) float32
        Unit L2 norm.
    indices : (N, K) or (Q, K) integers
        Neighbours, among ``features``.
    queries : (Q, D) float32, optional
        The faces, of unit L2 norm; by default all ``features``.

    Returns
    -------
    (N, K) or (Q, K) float32
    """
    of = features if queries is None else queries
    similarities = np.empty(indices.shape, dtype=np.float32)

    def fill(rows: slice) -> None:
        similarities[rows] = np.einsum("nkd,nd->nk", features[indices[rows]], of[rows])

    fill_in_threads(fill, row_blocks(len(indices), size=GATHERED_ROWS))
    return similarities


def recall(indices: np.ndarray, expected: np.ndarray) -> float:
    """Share of the ``expected`` neighbours (N, k) that are among ``indices`` (N, k), row by row."""
    return float(np.mean([np.isin(row, found).mean() for row, found in zip(expected, indices, strict=True)]))
