"""Nearest neighbours by cosine similarity: exact on CPU or GPU, approximate for millions of faces on a CPU."""

from collections.abc import Callable

import numpy as np
from rich.console import Console

# Unit queries (Q, D) → indices (Q, k) of the nearest of at least k faces, and similarities (Q, k) float32.
Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# Exact search compares all pairs: an hour for a million faces of D=256 on two cores, more than a day for five million.
EXACT_UP_TO = 1_000_000
# Approximate search on a million synthetic faces (D=256, K=80): 128 cells give a recall of 89 %, 256 give 92 %, 512
# give 94 %.
PROBES = 512  # cells searched for each query
CANDIDATES = 4  # faces compared in full for each neighbour wanted
SAMPLES = 500  # queries on which the recall is measured
FACES_PER_CHUNK = 32_768  # compared at a time on a GPU: 2 GB of similarities to a block of queries


def choose_search(features: np.ndarray, k: int, num_queries: int) -> Search:
    """Search among unit ``features`` (N, D): exact on a GPU or where a CPU takes hours at most, else approximate."""
    import faiss
    import torch

    faiss_gpus = getattr(faiss, "get_num_gpus", lambda: 0)()
    if torch.cuda.is_available() and not faiss_gpus:
        return cuda_search(features, k)
    exact = faiss_gpus or num_queries * len(features) <= EXACT_UP_TO**2
    return exact_search(features, k) if exact else approximate_search(features, k)


def exact_search(features: np.ndarray, k: int) -> Search:
    """Compare all pairs with FAISS, on GPUs if it can use them."""
    import faiss

    index = faiss.IndexFlatIP(features.shape[1])
    if getattr(faiss, "get_num_gpus", lambda: 0)():
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(features)
    return lambda queries: index.search(queries, k)[::-1]


def cuda_search(features: np.ndarray, k: int) -> Search:
    """Compare all pairs with PyTorch on a GPU, for FAISS without GPU support."""
    import torch

    faces = torch.tensor(features, device="cuda")

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        block = torch.tensor(queries, device="cuda")
        best, nearest = block.new_empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.int64).cuda()
        for start in range(0, len(faces), FACES_PER_CHUNK):
            similarities = block @ faces[start : start + FACES_PER_CHUNK].T
            values, columns = similarities.topk(min(k, similarities.shape[1]))
            best, nearest = torch.cat([best, values], dim=1), torch.cat([nearest, columns + start], dim=1)
            best, columns = best.topk(min(k, best.shape[1]))
            nearest = nearest.gather(1, columns)
        return nearest.cpu().numpy(), best.cpu().numpy()

    return search


def approximate_search(features: np.ndarray, k: int) -> Search:
    """Inverted file with 4-bit product quantisation and exact re-ranking (FAISS IVF-PQ); prints the recall.

    The cells nearest to a query are searched by codes, and the best candidates are compared in full. The neighbours do
    not depend on the number of threads, unlike those of an HNSW graph, which is about as fast.
    """
    import faiss

    num_faces, dim = features.shape
    num_cells = min(int(4 * num_faces**0.5), num_faces // 64)
    num_codes = dim // 2 if dim % 2 == 0 else dim
    index = faiss.index_factory(dim, f"IVF{num_cells},PQ{num_codes}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
    cells, exact = faiss.extract_index_ivf(index), faiss.downcast_index(index.refine_index)
    cells.cp.max_points_per_centroid = 64  # more training faces hardly change the cells
    index.train(features)
    index.add(features)
    probes = faiss.IVFSearchParameters(nprobe=min(PROBES, num_cells))
    parameters = faiss.IndexRefineSearchParameters(k_factor=CANDIDATES, base_index_params=probes)

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        similarities, indices = index.search(queries, k, params=parameters)
        short = (indices < 0).any(axis=1)  # the cells searched hold fewer than k faces
        if short.any():
            similarities[short], indices[short] = exact.search(queries[short], k)
        return indices, similarities

    sample = features[np.unique(np.linspace(0, num_faces - 1, SAMPLES).astype(int))]
    share = recall(search(sample)[0], exact.search(sample, k)[1])
    Console().print(f"approximate kNN graph: recall@{k} {share:.1%}, measured on {len(sample)} faces")
    return search


def recall(indices: np.ndarray, expected: np.ndarray) -> float:
    """Share of the ``expected`` neighbours (N, k) that are among ``indices`` (N, k), row by row."""
    return float(np.mean([np.isin(row, found).mean() for row, found in zip(expected, indices, strict=True)]))
