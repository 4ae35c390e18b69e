"""Which density edges join clusters: PCENet is asked only about those on which the answer hangs."""

from collections.abc import Callable

import numpy as np

from lcde.clustering.components import connected_labels

ROUNDS = 8  # more rounds ask about fewer edges, but each finds the components anew


def join_clusters(
    edges_density: np.ndarray,
    edges_similar: np.ndarray,
    connectivity: np.ndarray,
    certain: np.ndarray,
    num_faces: int,
    edge_probability: Callable[[np.ndarray], np.ndarray],
    edge_threshold: float,
    min_connectivity: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters from the similar edges and those density edges whose probability is above ``edge_threshold``.

    edges_density:     (M, 2) int64, with symmetrised ``connectivity`` (M,); edges_similar: (L, 2) int64
    certain:           (M,) bool, density edges that join unasked
    edge_probability:  edges (m, 2) → (m,) float32
    min_connectivity:  density edges below it are dropped unasked

    Returns labels (N,) int64 and the probabilities (M,) float32 of the edges that were asked about, NaN for others.
    An edge whose ends are connected already changes nothing: the strongest edges are asked about first, and those
    that they make superfluous never. Without ``certain`` ones and ``min_connectivity`` labels are those of asking about
    all.
    """
    probability = np.full(len(edges_density), np.nan, dtype=np.float32)
    joining = [edges_similar, edges_density[certain]]
    labels = connected_labels(np.concatenate(joining), num_faces)
    candidates = np.flatnonzero((connectivity >= min_connectivity) & ~certain)
    candidates = candidates[np.argsort(-connectivity[candidates], kind="stable")]
    for positions in np.array_split(candidates, ROUNDS):
        positions = positions[np.not_equal(*labels[edges_density[positions]].T)]
        if not len(positions):
            continue
        probability[positions] = edge_probability(edges_density[positions])
        joining.append(edges_density[positions[probability[positions] > edge_threshold]])
        labels = connected_labels(np.concatenate(joining), num_faces)
    return labels, probability
