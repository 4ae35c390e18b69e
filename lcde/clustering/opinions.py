"""More than one edge's word on whether two crowds are one person: a wrong answer there costs most."""

from collections.abc import Callable

import numpy as np

from lcde.clustering.communities import communities
from lcde.clustering.components import connected_labels
from lcde.clustering.density import ROWS
from lcde.clustering.edges import distinct_pairs

GROUP = 4  # faces of both communities between which second opinions are sought
FACES = 65_536  # whose communities are sought at a time; a cluster of more is left: no person, but too low a threshold


def second_opinions(
    labels: np.ndarray,
    joined: np.ndarray,
    graph: tuple[np.ndarray, np.ndarray, np.ndarray],
    number: int,
    edge_threshold: float,
    edge_probability: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """The clusters ``labels`` (N,), taken apart where a few wrong edges hold crowds together: labels (N,) int64 from 0.

    joined: (M, 2) int64, the edges that made the clusters; ``graph`` is as of `edges_between`. Inside a cluster, the
    kNN edges of connectivity above ``edge_threshold`` show communities. Two that such an edge or one of ``joined``
    connects stay together. If both have `GROUP` faces or more, they do so only where the mean connectivity of all kNN
    edges between them is above ``edge_threshold``, or else the mean ``edge_probability`` of the ``number`` strongest.
    """
    community = np.unique(labels, return_index=True)[1][labels]  # each is named by its first face
    place = np.empty(len(labels), dtype=np.int64)
    bridges = []
    for some in _whole_clusters(labels):
        faces, edges, weights = _inner_edges(some, labels, graph, edge_threshold)
        place[faces] = np.arange(len(faces))
        # One run will do: two crowds that it merges now and then merely stay together unasked.
        found = communities(place[edges], weights, len(faces), num_trials=1, seed=0)
        community[faces] = faces[np.unique(found, return_index=True)[1]][found]
        bridges.append(distinct_pairs(community[edges])[0])
    pairs, _ = distinct_pairs(np.concatenate([*bridges, community[joined]]))
    together = np.bincount(community)[pairs].min(axis=1) < GROUP
    if not together.all():
        edges, of_pair, mean = edges_between(pairs[~together], community, graph, number)
        asked = mean[of_pair] <= edge_threshold
        total = np.bincount(of_pair[asked], weights=edge_probability(edges[asked]), minlength=len(mean))
        together[~together] = np.maximum(mean, total / np.bincount(of_pair)) > edge_threshold
    return np.unique(connected_labels(pairs[together], len(labels))[community], return_inverse=True)[1]


def _whole_clusters(labels: np.ndarray) -> list[np.ndarray]:
    """The faces (n,) of clusters that may hold two groups, some `FACES` at a time, ascending within a cluster."""
    sizes = np.bincount(labels)
    chosen = (sizes >= 2 * GROUP) & (sizes <= FACES)
    order = np.argsort(labels, kind="stable")
    order = order[chosen[labels[order]]]
    ends = np.cumsum(sizes[chosen])
    return np.split(order, ends[:-1][np.diff((ends - 1) // FACES) > 0])


def _inner_edges(
    faces: np.ndarray, labels: np.ndarray, graph: tuple[np.ndarray, np.ndarray, np.ndarray], least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kNN edges of connectivity above ``least`` inside the clusters of ``faces`` (n,) that may be several crowds.

    Two faces that have such edges to more than half of the others of their cluster have one of them in common, so a
    cluster of which hardly any face has fewer is one crowd. Returns the faces of the others, the edges (M, 2), and
    their connectivity (M,).
    """
    indices, _, connectivity = graph
    own = labels[faces]
    inner = (labels[indices[faces]] == own[:, None]) & (connectivity[faces] > least)
    inner[:, 0] = False
    few = 2 * inner.sum(axis=1) < np.bincount(own)[own]
    loose = np.bincount(own, weights=few)[own] >= GROUP
    faces, place = faces[loose], np.flatnonzero(inner[loose])
    ends = np.stack([faces[place // indices.shape[1]], indices[faces].ravel()[place]], axis=1)
    return faces, ends, connectivity[faces].ravel()[place]


def edges_between(
    pairs: np.ndarray, labels: np.ndarray, graph: tuple[np.ndarray, np.ndarray, np.ndarray], number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``number`` kNN edges of largest s·c between the two clusters of each of ``pairs`` (P, 2) of ``labels`` (N,).

    Pairs are as of `distinct_pairs`, an edge leads from one of each to the other; ``graph``: indices (N, K) int32,
    similarities and symmetrised connectivity (N, K) float32. An edge that both its ends name counts once. Returns the
    edges (L, 2) int64, which of the pairs each belongs to (L,), ascending, and the mean connectivity (P,) of all edges
    between the two.
    """
    indices, similarities, connectivity = graph
    num_clusters = int(labels.max()) + 1
    keys = pairs[:, 0] * num_clusters + pairs[:, 1]
    faces = np.flatnonzero(np.isin(labels, pairs))
    found = []
    for start in range(0, len(faces), ROWS):
        rows = faces[start : start + ROWS]
        own, other = labels[rows, None], labels[indices[rows]]
        key = np.minimum(own, other) * num_clusters + np.maximum(own, other)
        position = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        row, column = np.nonzero(keys[position] == key)
        face = rows[row]
        strength = connectivity[face, column]
        weight = similarities[face, column] * strength
        found.append((face, indices[face, column].astype(np.int64), position[row, column], strength, weight))
    first, second, of_pair, strength, weight = (np.concatenate(parts) for parts in zip(*found, strict=True))
    _, once = np.unique(np.minimum(first, second) * len(labels) + np.maximum(first, second), return_index=True)
    mean = np.bincount(of_pair[once], strength[once]) / np.bincount(of_pair[once])
    order = once[np.lexsort((-weight[once], of_pair[once]))]
    of_pair = of_pair[order]
    rank = np.arange(len(order)) - np.searchsorted(of_pair, of_pair)
    strongest = order[rank < number]
    return np.stack([first[strongest], second[strongest]], axis=1), of_pair[rank < number], mean
