"""Synthetic kNN graphs, features and labels of any size, made in seconds.

Shape letters: N faces, K neighbours with the face itself first, D feature dimension.
"""

import numpy as np

from lcde.data.gallery import KNNGraph

CHUNK = 16_384  # rows made at a time, so that nothing beside the graph itself needs memory
FACES_PER_IDENTITY = 68  # as in MS1M part 1: 584,013 faces of 8,573 identities


def identity_graph(num_faces: int, k: int, seed: int) -> tuple[KNNGraph, np.ndarray, np.ndarray]:
    """A kNN graph with connectivity in which identities can be told apart but for some noise.

    A face's nearest neighbours are genuine (of its own identity), up to 3/4 of the row, and nearly all of them mutual;
    the rest of the row are impostors, hardly any of them mutual. Faces are in random order, the worst case for the
    processor's cache.

    Returns
    -------
    graph : KNNGraph
    connectivity : (N, K) float32
        Not symmetrised.
    labels_true : (N,) int64
    """
    rng = np.random.default_rng(seed)
    sizes = _sizes(num_faces, k, rng)
    first, size = np.repeat(np.cumsum(sizes) - sizes, sizes), np.repeat(sizes, sizes)  # of each position's identity
    face_at = rng.permutation(num_faces).astype(np.int32)
    position_of = np.empty_like(face_at)
    position_of[face_at] = np.arange(num_faces, dtype=np.int32)

    most_genuine = 3 * (k - 1) // 4
    steps = np.arange(1, most_genuine + 1)
    steps = np.where(steps % 2, (steps + 1) // 2, -steps // 2)  # 1, -1, 2, -2, …: so that neighbours are mutual
    # The same far steps for every face: its impostors are distinct faces of other identities.
    far = rng.choice(np.arange(sizes.max(), num_faces - sizes.max()), size=k - 1, replace=False)

    indices = np.empty((num_faces, k), dtype=np.int32)
    similarities = np.empty((num_faces, k), dtype=np.float32)
    connectivity = np.empty((num_faces, k), dtype=np.float32)
    for start in range(0, num_faces, CHUNK):
        rows = slice(start, min(start + CHUNK, num_faces))
        position = position_of[rows, None]
        num_genuine = np.minimum(size[position] - 1, most_genuine)
        near = first[position] + (position - first[position] + steps) % size[position]
        positions = (position + far) % num_faces
        column = np.arange(k - 1)
        genuine = column < num_genuine
        positions[:, :most_genuine] = np.where(genuine[:, :most_genuine], near, positions[:, :most_genuine])
        indices[rows, 0], indices[rows, 1:] = np.arange(rows.start, rows.stop), face_at[positions]
        quality = rng.uniform(0.55, 0.95, size=position.shape)
        similarity = np.where(genuine, quality - 0.3 * column / k, 0.4 - 0.2 * column / k)
        similarities[rows, 0], similarities[rows, 1:] = 1, np.minimum.accumulate(similarity, axis=1)
        random = rng.random(positions.shape, dtype=np.float32)
        connectivity[rows, 0] = 1
        connectivity[rows, 1:] = np.where(genuine, 1 - random**16, random**4 / 4)
    return KNNGraph(indices, similarities), connectivity, np.repeat(np.arange(len(sizes)), sizes)[position_of]


def identity_features(labels: np.ndarray, feature_dim: int, seed: int) -> np.ndarray:
    """Unit features (N, D) float32 of identities ``labels`` (N,), each as far from its mean as that is from 0."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((labels.max() + 1, feature_dim), dtype=np.float32)
    features = np.empty((len(labels), feature_dim), dtype=np.float32)
    for start in range(0, len(labels), CHUNK):
        rows = slice(start, start + CHUNK)
        features[rows] = means[labels[rows]]
        features[rows] += rng.standard_normal(features[rows].shape, dtype=np.float32)
        features[rows] /= np.linalg.norm(features[rows], axis=1, keepdims=True)
    return features


def labelings(num_faces: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted labels (N,) int64 in random order: each identity in one large cluster and a few small ones."""
    rng = np.random.default_rng(seed)
    sizes = _sizes(num_faces, FACES_PER_IDENTITY, rng)
    labels_true = np.repeat(np.arange(len(sizes)), sizes)
    piece = labels_true * 4 + rng.choice(4, size=num_faces, p=[0.85, 0.05, 0.05, 0.05])
    labels = np.unique(np.where(rng.random(num_faces) < 0.01, piece + 4, piece), return_inverse=True)[1]
    order = rng.permutation(num_faces)
    return labels_true[order], labels[order]


def _sizes(num_faces: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Sizes of identities, summing up to N, from 1 to 4 K or an eighth of N; log-normal."""
    mean, spread = FACES_PER_IDENTITY * min(1, k / 80), 0.8
    sizes = rng.lognormal(np.log(mean) - spread**2 / 2, spread, size=num_faces)
    sizes = np.clip(sizes, 1, min(4 * k, num_faces // 8)).astype(np.int64)
    end = np.cumsum(sizes)
    last = int(np.searchsorted(end, num_faces))
    sizes[last] -= end[last] - num_faces
    return sizes[: last + 1]
