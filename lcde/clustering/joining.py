"""Which density edges join clusters: PCENet is asked only about edges that can still change the clusters."""

from collections.abc import Callable

import numpy as np

from lcde.clustering.components import connected_labels

EdgeProbability = Callable[[np.ndarray], np.ndarray]  # edges (M, 2) to probabilities (M,) float32
ROUNDS = 8  # more rounds ask about fewer edges, but each computes the components again


def join_clusters(
    joined: np.ndarray, candidates: np.ndarray, num_faces: int, edge_probability: EdgeProbability, edge_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Connected components of ``joined`` and of the ``candidates`` whose probability is above ``edge_threshold``.

    An edge whose ends are connected already is not asked about: labels are those of asking about all candidates.

    Parameters
    ----------
    joined : (L, 2) int64
        Edges that join in any case.
    candidates : (M, 2) int64
        In the order of asking, the most probable first.
    num_faces : int
        N
    edge_probability : callable
        Edges (m, 2) to probabilities (m,) float32.
    edge_threshold : float

    Returns
    -------
    labels : (N,) int64
    probability : (M,) float32
        Of the candidates, NaN where it was not asked for.
    """
    probability = np.full(len(candidates), np.nan, dtype=np.float32)
    labels = connected_labels(joined, num_faces)
    for positions in np.array_split(np.arange(len(candidates)), ROUNDS):
        positions = positions[np.not_equal(*labels[candidates[positions]].T)]
        if len(positions):
            probability[positions] = edge_probability(candidates[positions])
            accepted = candidates[probability > edge_threshold]
            labels = connected_labels(np.concatenate([joined, accepted]), num_faces)
    return labels, probability
