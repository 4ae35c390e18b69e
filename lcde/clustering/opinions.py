"""More than one edge's word on whether two groups of faces are one person: a wrong answer there costs most."""

from collections.abc import Callable

import numpy as np

from lcde.clustering.density import ROWS

GROUP = 4  # faces on both sides from which a second opinion is sought


def second_opinions(
    edges: np.ndarray,
    probability: np.ndarray,
    labels: np.ndarray,
    graph: tuple[np.ndarray, np.ndarray, np.ndarray],
    number: int,
    edge_threshold: float,
    edge_probability: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """``probability`` (M,) float32 of ``edges`` (M, 2), for those that would join two groups the mean of several edges.

    These are edges above ``edge_threshold`` between clusters of `GROUP` faces or more, by ``labels`` (N,), of which
    none holds both ends of an edge; the ``number`` strongest kNN edges between the two clusters count as much as the
    edge itself. ``graph`` is as of `edges_between`.
    """
    clusters, sizes = labels[edges], np.bincount(labels)
    doubtful = np.flatnonzero((probability > edge_threshold) & (sizes[clusters].min(axis=1) >= GROUP))
    if not len(doubtful):
        return probability
    others, of_pair, pair = edges_between(clusters[doubtful], labels, graph, number)
    pairs = of_pair.max() + 1
    total = np.bincount(of_pair, weights=edge_probability(others), minlength=pairs)
    count = np.bincount(of_pair, minlength=pairs)
    result = probability.copy()
    result[doubtful] = (probability[doubtful] + total[pair]) / (1 + count[pair])
    return result


def edges_between(
    pairs: np.ndarray, labels: np.ndarray, graph: tuple[np.ndarray, np.ndarray, np.ndarray], number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``number`` kNN edges of largest s·c between the two clusters of each of ``pairs`` (P, 2) of ``labels`` (N,).

    ``graph``: indices (N, K) int32, similarities and symmetrised connectivity (N, K) float32. An edge that both its
    ends name counts once. Returns the edges (L, 2) int64, which of the distinct pairs each belongs to (L,), and which
    of them each of ``pairs`` is (P,).
    """
    indices, similarities, connectivity = graph
    num_clusters = int(labels.max()) + 1
    keys, pair = np.unique(pairs.min(axis=1) * num_clusters + pairs.max(axis=1), return_inverse=True)
    faces = np.flatnonzero(np.isin(labels, pairs))
    found = []
    for start in range(0, len(faces), ROWS):
        rows = faces[start : start + ROWS]
        own, other = labels[rows, None], labels[indices[rows]]
        key = np.minimum(own, other) * num_clusters + np.maximum(own, other)
        position = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        row, column = np.nonzero(keys[position] == key)
        face = rows[row]
        weight = similarities[face, column] * connectivity[face, column]
        found.append((face, indices[face, column].astype(np.int64), position[row, column], weight))
    first, second, of_pair, weight = (np.concatenate(parts) for parts in zip(*found, strict=True))
    _, once = np.unique(np.minimum(first, second) * len(labels) + np.maximum(first, second), return_index=True)
    order = once[np.lexsort((-weight[once], of_pair[once]))]
    of_pair = of_pair[order]
    rank = np.arange(len(order)) - np.searchsorted(of_pair, of_pair)
    strongest = order[rank < number]
    return np.stack([first[strongest], second[strongest]], axis=1), of_pair[rank < number], pair
