"""Weighted edges to labels by Infomap: a weak edge between two crowds does not join them, as it joins components."""

import tempfile
from pathlib import Path

import infomap
import numpy as np

from lcde.clustering.components import connected_labels


def communities(edges: np.ndarray, weights: np.ndarray, num_faces: int, num_trials: int, seed: int) -> np.ndarray:
    """Communities of ``edges`` (M, 2) with ``weights`` (M,) over N faces (map equation, Rosvall et al. 2009).

    Edges of weight 0 or less do not count, and one that is named from both ends counts once. The best of
    ``num_trials`` runs does: one alone now and then merges two large identities. Returns labels (N,) int64 from 0.
    """
    key = np.where(weights > 0, edges.min(axis=1) * num_faces + edges.max(axis=1), -1)
    key, once = np.unique(key, return_index=True)
    edges, weights = edges[once[key >= 0]], weights[once[key >= 0]]
    if not len(edges):
        return np.arange(num_faces)
    network = infomap.Network()
    network.add_links(np.column_stack([edges, weights]))  # at once; those of a sparse matrix it adds one by one
    result = infomap.run(network, two_level=True, num_trials=num_trials, seed=seed + 1)  # it counts seeds from 1
    # Not result.modules(): its iterators are SWIG objects, which FAISS's SWIG types take over and crash.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "modules.clu"
        result.write_clu(path)
        faces, found = np.loadtxt(path, dtype=np.int64, usecols=(0, 1), unpack=True)
    modules = np.empty(num_faces, dtype=np.int64)
    modules[faces] = found
    # Infomap now and then puts faces into one module between which there are no edges.
    return connected_labels(edges[np.equal(*modules[edges].T)], num_faces)
