"""New faces join the clusters there are, or open new ones; no face that is clustered moves."""

import numpy as np


def assign_faces(edges: np.ndarray, weights: np.ndarray, known_labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Labels (n,) int64 of n new faces that come after N known ones of ``known_labels`` (N,), from 0.

    ``edges`` (M, 2) lead from new faces, numbered from N, to any of the N + n, with positive ``weights`` (M,);
    ``groups`` (n,) from 0 are the clusters of the new faces among themselves. Each new face joins the known cluster or
    the group, its own or another, to which it has the largest total weight, the former of two equal ones; without an
    edge it stays in its group. A face that joins wrongly takes none along. What is left of a group opens a cluster.
    """
    num_known, num_new = len(known_labels), len(groups)
    num_clusters = int(known_labels.max()) + 1 if num_known else 0
    labels = np.concatenate([known_labels, num_clusters + groups])
    faces = edges[:, 0] - num_known
    width = num_clusters + num_new
    pair, position = np.unique(faces * width + labels[edges[:, 1]], return_inverse=True)
    total = np.bincount(position, weights=weights, minlength=len(pair))
    order = np.lexsort((-pair, total))  # ascending, so that the best pair of each face is written last and stays
    home = labels[num_known:].copy()
    home[pair[order] // width] = pair[order] % width
    opening = home >= num_clusters
    home[opening] = num_clusters + np.unique(home[opening], return_inverse=True)[1]
    return home
