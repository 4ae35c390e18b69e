"""Clusters as nodes of a kNN graph, described by similarities alone: what the universal network reads.

A node is a cluster of one face or more. Shape letters: N faces, C nodes, K neighbours with the node itself first,
D feature dimension.
"""

from dataclasses import dataclass

import numpy as np

from lcde.clustering.impostors import HIGHEST, fit_low_quantiles
from lcde.clustering.whitening import cluster_sums
from lcde.data.gallery import KNNGraph, row_blocks
from lcde.data.knn import build_knn

SAMPLE = 1_500  # faces compared with as many others
REFERENCES = 800  # nodes, of all sizes, that each node is compared with
RANKS = (1, 2, 4, 8, 16, 32)  # neighbours whose similarity describes a node
PROFILE = (0.05, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 1.0)  # quantiles of a node's similarities to nodes of all sizes
CORRECTED = (0.5, 0.9, 0.97, 0.99, 1.0)  # of its corrected similarities to them
RANDOM = (0.02, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 0.997, 0.999)  # of the similarities of random pairs of nodes
NEAREST_RANKS, NEAREST = (1, 4, 16), (0.1, 0.5, 0.9)  # over nodes, of the similarity to the neighbour of that rank
CONTEXT, CONTEXT_NEIGHBOURS = 96, 4  # nodes of all sizes that stand for the gallery, and neighbours that describe each
SHOWN = 6  # faces of a node that are compared with those of another one
NODE_WIDTH = len(PROFILE) + len(RANKS) + 9 + len(CORRECTED)
FACES_WIDTH = 5
CONTEXT_WIDTH = NODE_WIDTH + (3 + FACES_WIDTH) * CONTEXT_NEIGHBOURS
GALLERY_WIDTH = len(RANDOM) + len(NEAREST_RANKS) * len(NEAREST) + 9
SPAN = 0.9704, 0.6745  # standard deviations of a normal distribution from its 5 % to its 25 % quantile, and to its mean
PRIOR_FACES = 2  # weight, in faces, of the gallery's similarity within clusters when a cluster's own is estimated


@dataclass(frozen=True)
class Nodes:
    """Clusters of faces.

    Attributes
    ----------
    directions : (C, D) float32
        Unit mean of the faces.
    sizes : (C,) float32
        Faces.
    resultants : (C,) float32
        Length of the mean of the unit faces: 1 where all are alike.
    """

    directions: np.ndarray
    sizes: np.ndarray
    resultants: np.ndarray


@dataclass(frozen=True)
class NodeGraph:
    """Nodes with their kNN graph and what describes them.

    Similarities z are in standard deviations above the mean of impostor faces, divided by 4 and clipped.

    Attributes
    ----------
    nodes : Nodes
    graph : KNNGraph
        Of the nodes' directions.
    impostors : (2,) float32
        Mean and spread of the similarity of impostor faces, by `impostor_fit`.
    own : (C, 2) float32
        Mean and spread of each node's similarity to its impostors.
    correction : (C,) float32
        c_i such that s_ij c_i c_j is the similarity of two nodes without the noise of their faces: the mean similarity
        across the two, relative to those within each; about 1 for one identity.
    expected : (C,) float32
        Mean similarity within each node, that of small ones drawn to that of the gallery.
    features : (C, NODE_WIDTH) float32
    near : (C, len(RANKS)) float32
        Similarity to the neighbours of those ranks.
    faces : (C, K, FACES_WIDTH) float32
        Of similarities between some faces of a node and of its neighbour: z of the lowest, of the mean, of the mean
        over faces of the highest, and of the highest; standard deviation.
    gallery : (GALLERY_WIDTH,) float32
    context : (CONTEXT, CONTEXT_WIDTH) float32
        Features and nearest neighbours of nodes of all sizes.
    """

    nodes: Nodes
    graph: KNNGraph
    impostors: np.ndarray
    own: np.ndarray
    correction: np.ndarray
    expected: np.ndarray
    features: np.ndarray
    near: np.ndarray
    faces: np.ndarray
    gallery: np.ndarray
    context: np.ndarray


def pool(features: np.ndarray, labels: np.ndarray) -> Nodes:
    """The clusters ``labels`` (N,) from 0, without gaps, of unit ``features`` (N, D)."""
    sums, sizes = cluster_sums(features, labels), np.bincount(labels).astype(np.float32)
    lengths = np.linalg.norm(sums, axis=1)
    return Nodes(sums / np.maximum(lengths, 1e-9)[:, None], sizes, lengths / sizes)


def impostor_fit(features: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean and spread of the similarity of random ``features`` (N, D) of different ``labels`` (N,), copies left out."""
    order, dim = np.random.default_rng(0).permutation(len(features)), features.shape[1]
    first, second = order[:SAMPLE], order[-SAMPLE:]
    pairs, different = features[first] @ features[second].T, labels[first][:, None] != labels[second]
    usable = (pairs < HIGHEST) & (first[:, None] != second)
    usable &= different if (usable & different).any() else True
    if not usable.any():
        return 0.0, max(0.05, dim**-0.5)
    mean, spread = fit_low_quantiles(pairs[usable])
    return mean, max(spread, 0.5 * dim**-0.5)


def describe(features: np.ndarray, labels: np.ndarray, k: int) -> NodeGraph:
    """The clusters ``labels`` (N,) of unit ``features`` (N, D), with the ``k`` nearest ones of each, or all."""
    nodes = pool(features, labels)
    directions, sizes, resultants, num_nodes = nodes.directions, nodes.sizes, nodes.resultants, len(nodes.sizes)
    graph = build_knn(directions, min(k, num_nodes))
    similarities, last = graph.similarities, graph.k - 1
    mean, spread = impostor_fit(features, labels)  # of faces: there may be hardly any nodes

    many, (expected, correction) = sizes > 1, noise_correction(nodes)
    typical = typical_similarity(nodes)
    near = similarities[:, [min(rank, last) for rank in RANKS]]

    references = _spread(near, sizes, REFERENCES)
    profile, corrected = np.empty((num_nodes, len(PROFILE))), np.empty((num_nodes, len(CORRECTED)))
    for rows in row_blocks(num_nodes, size=1024):
        block, number = directions[rows] @ directions[references].T, np.arange(rows.start, rows.stop)
        itself = references == number[:, None]
        block[itself] = np.repeat(np.median(block, axis=1), itself.sum(axis=1))
        corrected[rows] = _quantiles(block * correction[references] * correction[number, None], CORRECTED)
        profile[rows] = _quantiles(block, PROFILE)
    own_spread = np.maximum((profile[:, 1] - profile[:, 0]) / SPAN[0], 0.3 * spread)
    own = np.stack([profile[:, 1] + SPAN[1] * own_spread, own_spread], axis=1)
    faces = _between_faces(features, shown_faces(features, labels, directions), graph.indices)
    faces[..., :-1] = _clipped((faces[..., :-1] - mean) / spread)
    faces[..., -1] /= spread * 4

    def z(values: np.ndarray) -> np.ndarray:
        return _clipped((values - mean) / spread)

    alike = np.where(many, z(similarity_within(nodes)), 0)
    shape = np.log1p(sizes) / 5, resultants, alike, many, own_spread / spread / 2, np.log(expected / typical)
    node_features = np.column_stack(
        [z(profile), z(near), *shape, faces[:, 0, [0, 2, 4]], corrected.clip(-1, 3)]
    ).astype(np.float32)

    random_pairs = (directions[references] @ directions[references].T)[~np.eye(len(references), dtype=bool)]
    of_random = np.quantile(random_pairs, RANDOM) if len(random_pairs) else np.zeros(len(RANDOM))
    of_nearest = np.concatenate([np.quantile(similarities[:, min(rank, last)], NEAREST) for rank in NEAREST_RANKS])
    scales = [(1 - mean) / spread / 16, np.log(num_nodes) / 10, np.log(sizes.sum()) / 10, spread * 5, typical]
    scales += [(typical - mean) / spread / 8, np.log1p(sizes).mean() / 3, np.log1p(sizes).max() / 5]
    gallery = np.concatenate([z(of_random), z(of_nearest), scales, [many.mean()]]).astype(np.float32)

    shown = np.resize(_spread(near, sizes, CONTEXT), CONTEXT)
    columns = np.arange(1, 1 + CONTEXT_NEIGHBOURS).clip(max=last)  # where there are fewer, the last one stands for them
    edges, others = similarities[shown][:, columns], graph.indices[shown][:, columns]
    links = (edges * correction[shown, None] * correction[others]).clip(-1, 3), np.log1p(sizes[others]) / 5
    of_faces = faces[shown][:, columns].reshape(len(shown), -1)
    context = np.column_stack([node_features[shown], z(edges), *links, of_faces]).astype(np.float32)
    impostors, own = np.array([mean, spread], dtype=np.float32), own.astype(np.float32)
    return NodeGraph(nodes, graph, impostors, own, correction, expected, node_features, near, faces, gallery, context)


def noise_correction(nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Expected similarity (C,) of two faces of each node, and its correction (C,): see `NodeGraph`."""
    pairs, within, typical = np.maximum(nodes.sizes - 1, 0), similarity_within(nodes), typical_similarity(nodes)
    expected = np.maximum((pairs * within + PRIOR_FACES * typical) / (pairs + PRIOR_FACES), 0.05)
    return expected.astype(np.float32), (nodes.resultants / np.sqrt(expected)).astype(np.float32)


def similarity_within(nodes: Nodes) -> np.ndarray:
    """Mean similarity (C,) of two faces of each node; 1 for a single face."""
    sizes = nodes.sizes
    return np.where(sizes > 1, (sizes * nodes.resultants**2 - 1) / np.maximum(sizes - 1, 1), 1)


def typical_similarity(nodes: Nodes) -> float:
    """Mean similarity of two faces of a node, over the faces of nodes that have two or more."""
    sizes, many = nodes.sizes, nodes.sizes > 1
    return max(0.15, float(np.average(similarity_within(nodes)[many], weights=sizes[many]))) if many.any() else 0.5


def shown_faces(features: np.ndarray, labels: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Faces (C, SHOWN) of each cluster, from the one farthest from its direction to the nearest one."""
    to_mean = np.einsum("nd,nd->n", features, directions[labels])
    order = np.lexsort((to_mean, labels))
    sizes = np.bincount(labels)
    place = np.linspace(0, sizes - 1, SHOWN, axis=1).round().astype(np.int64)
    return order[(np.cumsum(sizes) - sizes)[:, None] + place]


def _between_faces(features: np.ndarray, shown: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Statistics (C, K, FACES_WIDTH) of similarities between the faces ``shown`` (C, SHOWN) of nodes and neighbours.

    They are the lowest, mean, mean over faces of the highest, highest, and the standard deviation. Column 0 compares
    each node's faces with themselves.
    """
    result = np.empty((*indices.shape, FACES_WIDTH), dtype=np.float32)
    for rows in row_blocks(len(indices), size=256):
        first, second = features[shown[rows]], features[shown[indices[rows]]]  # (rows, SHOWN, D), (rows, K, SHOWN, D)
        second = second.reshape(len(second), -1, features.shape[1])
        pairs = (first @ second.transpose(0, 2, 1)).reshape(len(first), SHOWN, -1, SHOWN).transpose(0, 2, 1, 3)
        highest = (pairs.max(axis=2).mean(axis=2) + pairs.max(axis=3).mean(axis=2)) / 2
        flat = pairs.reshape(*pairs.shape[:2], -1)
        values = flat.min(axis=2), flat.mean(axis=2), highest, flat.max(axis=2), flat.std(axis=2)
        result[rows] = np.stack(values, axis=2)
    return result


def _spread(near: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` nodes, evenly spaced in the order of ``sizes`` (C,) and similarities ``near`` (C, ·)."""
    order = np.lexsort((*near.T, sizes))
    return order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64)]


def _clipped(z: np.ndarray) -> np.ndarray:
    return np.clip(z / 4, -1.5, 6)


def _quantiles(block: np.ndarray, quantiles: tuple[float, ...]) -> np.ndarray:
    """Quantiles (rows, Q) of each row, without interpolation."""
    return np.sort(block, axis=1)[:, (np.array(quantiles) * (block.shape[1] - 1)).astype(int)]
