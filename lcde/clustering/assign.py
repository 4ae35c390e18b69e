"""New faces join the clusters there are, or open new ones; no face that is clustered moves."""

import numpy as np

from lcde.clustering.components import connected_labels


def assign_faces(edges: np.ndarray, weights: np.ndarray, known_labels: np.ndarray, num_new: int) -> np.ndarray:
    """Labels (n,) int64 of ``num_new`` faces that come after N known ones of ``known_labels`` (N,), from 0.

    ``edges`` (M, 2) lead from new faces, numbered from N, to any of the N + n, with positive ``weights`` (M,). A new
    face joins the known cluster to which it has the largest total weight, whatever other new faces there are: one that
    is joined wrongly takes none along. Those without an edge to any open clusters, together where edges connect them.
    """
    num_known = len(known_labels)
    num_clusters = int(known_labels.max()) + 1 if num_known else 0
    new, others = edges[:, 0] - num_known, edges[:, 1]
    known = others < num_known

    pair, position = np.unique(new[known] * max(num_clusters, 1) + known_labels[others[known]], return_inverse=True)
    total = np.bincount(position, weights=weights[known], minlength=len(pair))
    # Ascending by weight, so that the heaviest pair of each face is written last and stays.
    order = np.argsort(total, kind="stable")
    home = np.full(num_new, -1, dtype=np.int64)
    home[pair[order] // max(num_clusters, 1)] = pair[order] % max(num_clusters, 1)

    opening = home == -1
    ends = np.stack([new[~known], others[~known] - num_known], axis=1)
    groups = connected_labels(ends[opening[ends].all(axis=1)], num_new)
    home[opening] = num_clusters + np.unique(groups[opening], return_inverse=True)[1]
    return home
