"""Assignment of new faces to clusters that exist; faces that are clustered already do not move."""

import numpy as np


def assign_faces(edges: np.ndarray, weights: np.ndarray, known_labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Let each new face join the known cluster, or the group of new faces, to which it has the largest total weight.

    The new faces are numbered from N on. Of two equal weights the cluster of the lower number wins, a known one before
    a group. A face without edges stays in its own group. What remains of a group becomes a new cluster.

    Parameters
    ----------
    edges : (M, 2) int64
        From new faces to any of the N + n faces; edges to noise do not count.
    weights : (M,) float
        Not negative.
    known_labels : (N,) int64
        Known clusters numbered from 0, -1 for noise.
    groups : (n,) int64
        Clusters of the new faces among themselves, numbered from 0.

    Returns
    -------
    (N + n,) int64
        ``known_labels`` followed by the labels of the new faces, new clusters numbered after the known ones.
    """
    num_known = len(known_labels)
    num_clusters = int(known_labels.max(initial=-1)) + 1
    labels = np.concatenate([known_labels, num_clusters + groups])
    counted = labels[edges[:, 1]] >= 0
    edges, weights = edges[counted], weights[counted]
    width = num_clusters + len(groups)
    pair, position = np.unique((edges[:, 0] - num_known) * width + labels[edges[:, 1]], return_inverse=True)
    total = np.bincount(position, weights=weights, minlength=len(pair))
    order = np.lexsort((-pair, total))  # ascending, so that the best pair of each face is written last and stays
    labels[num_known + pair[order] // width] = pair[order] % width
    opened = np.flatnonzero(labels >= num_clusters)
    labels[opened] = num_clusters + np.unique(labels[opened], return_inverse=True)[1]
    return labels
