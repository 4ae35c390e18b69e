"""New faces join the clusters there are, or open new ones; no face that is clustered moves."""

import numpy as np

from lcde.clustering.components import connected_labels


def assign_faces(edges: np.ndarray, weights: np.ndarray, known_labels: np.ndarray, num_new: int) -> np.ndarray:
    """Labels (n,) int64 of ``num_new`` faces that come after N known ones of ``known_labels`` (N,), from 0.

    ``edges`` (M, 2) lead from new faces, numbered from N, to any of the N + n, with positive ``weights`` (M,). New
    faces that they connect stay together, and join the known cluster to which they have the largest total weight;
    without an edge to any, they open a cluster.
    """
    num_known = len(known_labels)
    among_new = edges[:, 1] >= num_known
    groups = connected_labels(edges[among_new] - num_known, num_new)

    group, cluster = groups[edges[~among_new, 0] - num_known], known_labels[edges[~among_new, 1]]
    num_clusters = int(known_labels.max()) + 1 if num_known else 0
    pair, position = np.unique(group * max(num_clusters, 1) + cluster, return_inverse=True)
    total = np.bincount(position, weights=weights[~among_new], minlength=len(pair))
    # Ascending by weight, so that the heaviest pair of each group is written last and stays.
    order = np.argsort(total, kind="stable")
    home = np.full(groups.max() + 1, -1, dtype=np.int64)
    home[pair[order] // max(num_clusters, 1)] = pair[order] % max(num_clusters, 1)
    opened = home == -1
    home[opened] = num_clusters + np.arange(opened.sum())
    return home[groups]
