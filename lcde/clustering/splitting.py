"""Splitting of weakly linked clusters: several edges decide whether two communities are one identity.

One wrong edge between two large communities costs more than any other, so one edge is not enough to join them.
"""

from typing import NamedTuple

import numpy as np

from lcde.clustering.communities import communities
from lcde.clustering.components import connected_labels
from lcde.clustering.edges import distinct_pairs
from lcde.clustering.joining import EdgeProbability
from lcde.data.gallery import KNNGraph, row_blocks

SMALL = 4  # a community of fewer faces stays with those that it is linked to
FACES = 65_536  # faces whose communities are computed at a time; larger clusters come of a wrong threshold and stay


class WeightedGraph(NamedTuple):
    """A kNN graph with the symmetrised ``connectivity`` (N, K) float32 of its edges."""

    knn: KNNGraph
    connectivity: np.ndarray


def split_weak_clusters(
    labels: np.ndarray,
    joined: np.ndarray,
    graph: WeightedGraph,
    num_edges: int,
    edge_threshold: float,
    edge_probability: EdgeProbability,
) -> np.ndarray:
    """Split clusters whose communities are weakly linked.

    The kNN edges of connectivity above ``edge_threshold`` inside a cluster give its communities. Two communities are
    linked if one of these edges or of ``joined`` connects them. Linked communities stay together if one has fewer than
    `SMALL` faces, if the mean connectivity of all kNN edges between them is above ``edge_threshold``, or if the mean
    probability of the ``num_edges`` strongest of these edges is.

    Parameters
    ----------
    labels : (N,) int64
    joined : (M, 2) int64
        The edges that made the clusters.
    graph : WeightedGraph
    num_edges : int
        Edges between two communities that ``edge_probability`` is asked about.
    edge_threshold : float
    edge_probability : callable
        Edges (m, 2) to probabilities (m,) float32.

    Returns
    -------
    (N,) int64
        Numbered from 0.
    """
    community = np.unique(labels, return_index=True)[1][labels]  # each is named by its first face
    place = np.empty(len(labels), dtype=np.int64)
    links = []
    for some in _whole_clusters(labels):
        faces, edges, weights = _inner_edges(some, labels, graph, edge_threshold)
        place[faces] = np.arange(len(faces))
        # One run is enough: communities that it wrongly merges merely stay together.
        found = communities(place[edges], weights, len(faces), num_trials=1, seed=0)
        community[faces] = faces[np.unique(found, return_index=True)[1]][found]
        links.append(distinct_pairs(community[edges])[0])
    pairs, _ = distinct_pairs(np.concatenate([*links, community[joined]]))
    together = np.bincount(community)[pairs].min(axis=1) < SMALL
    if not together.all():
        edges, of_pair, mean = edges_between(pairs[~together], community, graph, num_edges)
        asked = mean[of_pair] <= edge_threshold
        total = np.bincount(of_pair[asked], weights=edge_probability(edges[asked]), minlength=len(mean))
        together[~together] = np.maximum(mean, total / np.bincount(of_pair)) > edge_threshold
    return np.unique(connected_labels(pairs[together], len(labels))[community], return_inverse=True)[1]


def _whole_clusters(labels: np.ndarray) -> list[np.ndarray]:
    """The faces (n,) of clusters that may hold two communities, some `FACES` at a time, ascending within a cluster."""
    sizes = np.bincount(labels)
    chosen = (sizes >= 2 * SMALL) & (sizes <= FACES)
    order = np.argsort(labels, kind="stable")
    order = order[chosen[labels[order]]]
    ends = np.cumsum(sizes[chosen])
    return np.split(order, ends[:-1][np.diff((ends - 1) // FACES) > 0])


def _inner_edges(
    faces: np.ndarray, labels: np.ndarray, graph: WeightedGraph, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kNN edges of connectivity above ``least`` inside those clusters of ``faces`` (n,) that may be split.

    Two faces that have such edges to more than half of the others of their cluster have one of them in common, so a
    cluster in which fewer than `SMALL` faces have fewer is one community. Returns the faces of the other clusters, the
    edges (M, 2) and their connectivity (M,).
    """
    own, indices = labels[faces], graph.knn.indices
    inner = (labels[indices[faces]] == own[:, None]) & (graph.connectivity[faces] > least)
    inner[:, 0] = False
    few = 2 * inner.sum(axis=1) < np.bincount(own)[own]
    loose = np.bincount(own, weights=few)[own] >= SMALL
    faces, place = faces[loose], np.flatnonzero(inner[loose])
    ends = np.stack([faces[place // graph.knn.k], indices[faces].ravel()[place]], axis=1)
    return faces, ends, graph.connectivity[faces].ravel()[place]


def edges_between(
    pairs: np.ndarray, labels: np.ndarray, graph: WeightedGraph, num_edges: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``num_edges`` kNN edges of largest s·c between the clusters of each of ``pairs`` (P, 2) of ``labels`` (N,).

    The pairs are sorted, distinct, and a kNN edge connects each; an edge that comes in the rows of both its ends counts
    once.

    Returns
    -------
    edges : (L, 2) int64
    of_pair : (L,) int64
        Position of the pair that each edge belongs to, ascending.
    mean : (P,) float64
        Mean connectivity of all kNN edges between the clusters of each pair.
    """
    num_clusters = int(labels.max()) + 1
    keys = pairs[:, 0] * num_clusters + pairs[:, 1]
    faces = np.flatnonzero(np.isin(labels, pairs))
    found = []
    for rows in (faces[block] for block in row_blocks(len(faces))):
        indices = graph.knn.indices[rows]
        own, other = labels[rows, None], labels[indices]
        key = np.minimum(own, other) * num_clusters + np.maximum(own, other)
        position = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        row, column = np.nonzero(keys[position] == key)
        found.append(np.stack([rows[row], column, position[row, column]]))
    first, column, of_pair = np.concatenate(found, axis=1)
    second, strength = graph.knn.indices[first, column].astype(np.int64), graph.connectivity[first, column]
    weight = graph.knn.similarities[first, column] * strength
    _, once = np.unique(np.minimum(first, second) * len(labels) + np.maximum(first, second), return_index=True)
    mean = np.bincount(of_pair[once], strength[once]) / np.bincount(of_pair[once])
    order = once[np.lexsort((-weight[once], of_pair[once]))]
    of_pair = of_pair[order]
    rank = np.arange(len(order)) - np.searchsorted(of_pair, of_pair)
    strongest = order[rank < num_edges]
    return np.stack([first[strongest], second[strongest]], axis=1), of_pair[rank < num_edges], mean
