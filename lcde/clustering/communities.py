"""Communities of a weighted graph by the map equation: a weak edge between two groups does not join them.

References
----------
Rosvall, Axelsson, Bergstrom: The map equation. European Physical Journal Special Topics 178, 2009.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from lcde.clustering.components import connected_labels
from lcde.clustering.edges import distinct_pairs
from lcde.data.gallery import KNNGraph, row_blocks

Search = Callable[[np.ndarray, np.ndarray, int, int, int], np.ndarray]  # distinct edges, …, seed, as of `communities`


def communities(
    edges: np.ndarray, weights: np.ndarray, num_faces: int, num_trials: int, seed: int, search: Search | None = None
) -> np.ndarray:
    """Communities by the map equation.

    Parameters
    ----------
    edges : (M, 2) int64
        Undirected; an edge that comes twice counts once.
    weights : (M,) float
        Edges of weight 0 or less do not count.
    num_faces : int
        N
    num_trials : int
        Runs, of which the one of the shortest codelength counts.
    seed : int
        Of the first run; each further run takes the next one.
    search : callable
        `louvain`, which is the default, or `infomap`.

    Returns
    -------
    (N,) int64
        Communities numbered from 0, all of them connected.
    """
    positive = weights > 0
    if not positive.all():
        edges, weights = edges[positive], weights[positive]
    edges, position = distinct_pairs(edges)
    weights = weights[position]
    if not len(edges):
        return np.arange(num_faces)
    modules = (search or louvain)(edges, weights, num_faces, num_trials, seed)
    # Optimisers may put faces together that no edges connect.
    return connected_labels(edges[np.equal(*modules[edges].T)], num_faces)


def communities_of_graph(
    graph: KNNGraph, counted: np.ndarray, num_trials: int, seed: int, factors: np.ndarray | None = None
) -> np.ndarray:
    """`communities` of edges of ``graph``, which are never listed as pairs: that takes a third of the memory.

    Parameters
    ----------
    graph : KNNGraph
    counted : (N, K) bool
        Which edges count; the similarities of these are above 0. Those from a face to itself never do.
    num_trials, seed : int
        As of `communities`.
    factors : (N, K) float32, optional
        The weight of an edge is its similarity times this, which is above 0 where an edge counts. Where both ends list
        an edge with different weights, the larger one counts.

    Returns
    -------
    (N,) int64
    """
    adjacency = _upper_triangle(graph, counted, factors)
    if not adjacency.nnz:
        return np.arange(len(graph))
    modules = _louvain(adjacency, num_trials, seed)
    rows = np.repeat(np.arange(len(graph), dtype=np.int32), np.diff(adjacency.indptr))
    adjacency.data = modules[rows] == modules[adjacency.indices]
    adjacency.eliminate_zeros()
    return connected_components(adjacency, directed=False)[1].astype(np.int64)


def _upper_triangle(graph: KNNGraph, counted: np.ndarray, factors: np.ndarray | None) -> csr_matrix:
    """Symmetric adjacency (N, N) of `communities_of_graph`, of which only pairs i < j are held."""
    num_faces = len(graph)
    upward = graph.indices > np.arange(num_faces, dtype=np.int32)[:, None]

    def part(chosen: np.ndarray) -> csr_matrix:
        starts = np.append(0, np.cumsum(np.count_nonzero(chosen, axis=1)))
        weights = graph.similarities[chosen]
        if factors is not None:
            weights *= factors[chosen]
        return csr_matrix((weights, graph.indices[chosen], starts), shape=(num_faces, num_faces))

    downward = counted & ~upward
    downward[:, 0] = False
    upper, lower = part(counted & upward), part(downward).T.tocsr()
    upper.sort_indices()
    return upper.maximum(lower)


def louvain(edges: np.ndarray, weights: np.ndarray, num_faces: int, num_trials: int, seed: int) -> np.ndarray:
    """Modules (N,) by NetworKit's Louvain method for the map equation; the lower end of each edge first."""
    return _louvain(csr_matrix((weights, tuple(edges.T)), shape=(num_faces, num_faces)), num_trials, seed)


def _louvain(adjacency: csr_matrix, num_trials: int, seed: int) -> np.ndarray:
    """`louvain` of an upper triangle (N, N), whose weights become float64."""
    import networkit as nk  # takes seconds

    threads = nk.getMaxNumberOfThreads()
    nk.setNumberOfThreads(1)  # several threads give other communities in every run
    adjacency.data = adjacency.data.astype(np.float64)
    try:
        if hasattr(nk, "GraphFromCsr"):  # NetworKit 11.3: the same graph in less than half the time
            graph = nk.GraphFromCsr(adjacency, weighted=True, directed=False)
        else:
            graph = nk.GraphFromCoo(adjacency.tocoo(), n=adjacency.shape[0], weighted=True, directed=False)

        def modules(run: int) -> np.ndarray:
            nk.setSeed(seed + run, False)
            method = nk.community.LouvainMapEquation(graph, True, 32, "none").run()
            return np.array(method.getPartition().getVector())

        if num_trials == 1:
            return modules(0)
        return min(map(modules, range(num_trials)), key=partial(codelength, adjacency))
    finally:
        nk.setNumberOfThreads(threads)


def infomap(
    edges: np.ndarray, weights: np.ndarray, num_faces: int, num_trials: int, seed: int, directed: bool = False
) -> np.ndarray:
    """Modules (N,) by the package ``infomap`` (GPL-3.0-or-later); a face of no edge is a module of its own."""
    import infomap

    network = infomap.Network()
    network.add_links(np.column_stack([edges, weights]))  # at once; those of a sparse matrix it adds one by one
    first = seed + 1  # its seeds start at 1
    result = infomap.run(network, two_level=True, num_trials=num_trials, seed=first, directed=directed)
    modules = -1 - np.arange(num_faces)
    # Not result.modules(): its iterators are SWIG objects, which FAISS's SWIG types take over and crash.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "modules.clu"
        result.write_clu(path)
        faces, found = np.loadtxt(path, dtype=np.int64, usecols=(0, 1), unpack=True)
    modules[faces] = found
    return modules


def codelength(adjacency: csr_matrix, modules: np.ndarray) -> float:
    """Bits per step of a random walk on an undirected graph that ``modules`` describe: the two-level map equation.

    Parameters
    ----------
    adjacency : (N, N) sparse matrix
        Positive weights of the edges, each once, none from a face to itself.
    modules : (N,) int64
        Numbered from 0.
    """
    num_modules, total = int(modules.max()) + 1, 2 * adjacency.sum(dtype=np.float64)
    exits = np.zeros(num_modules)
    for rows in row_blocks(len(modules)):  # few edges leave a module
        block = adjacency[rows].tocoo()
        ends = np.stack([modules[block.row + rows.start], modules[block.col]])
        leaving = np.flatnonzero(np.not_equal(*ends))
        exits += np.bincount(ends[:, leaving].ravel(), np.tile(block.data[leaving], 2), num_modules)
    of_faces = adjacency.sum(axis=0, dtype=np.float64).A1 + adjacency.sum(axis=1, dtype=np.float64).A1
    exits, visits = exits / total, of_faces / total
    inside = np.bincount(modules, visits, num_modules)
    return _plogp(exits.sum(keepdims=True)) - 2 * _plogp(exits) - _plogp(visits) + _plogp(exits + inside)


def _plogp(values: np.ndarray) -> float:
    """Sum of p log2 p over the positive ``values``."""
    positive = values[values > 0]
    return float(positive @ np.log2(positive))
