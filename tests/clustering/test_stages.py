"""Every stage from a kNN graph to labels, on two thousand small graphs, by dense matrices.

The graphs are asymmetric and full of ties; their values are such that all sums and products are exact.
"""

import numpy as np
import pytest

from lcde.clustering.communities import _upper_triangle
from lcde.clustering.components import connected_labels
from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import distinct_pairs, edges_above, select_edges, values_of_edges
from lcde.clustering.joining import join_clusters
from lcde.clustering.shared_neighbours import sums_over_shared
from lcde.data.gallery import KNNGraph
from lcde.data.knn import build_knn

THRESHOLDS = [0.0625, 0.25, 0.5]  # 11 values of K and 3 thresholds: every pair comes
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def graphs(make_graph):
    """25 small graphs of 2 to 12 faces side by side, eighty times: graph, connectivity, threshold, seed."""
    found = []
    for seed in range(80):
        k, rng, end = 2 + seed % 11, np.random.default_rng(seed), 0
        indices, similarities, connectivity = [], [], []
        for number in range(25):
            graph, directed = make_graph(25 * seed + number, int(rng.integers(k, 13)), k)
            indices.append(graph.indices + np.int32(end))
            similarities.append(graph.similarities)
            connectivity.append(directed)
            end += len(graph)
        together = KNNGraph(np.concatenate(indices), np.concatenate(similarities))
        found.append((together, np.concatenate(connectivity), THRESHOLDS[seed % len(THRESHOLDS)], seed))
    return found


def dense(values, indices):
    """Matrix (N, N) of the values of edges, 0 where there is none."""
    matrix = np.zeros((len(indices), len(indices)), dtype=np.float64)
    np.put_along_axis(matrix, indices, values, axis=1)
    return matrix


def reachable(edges, num_faces):
    """Whether a path leads from one face to another, of 12 at most: (N, N) bool."""
    adjacent = np.eye(num_faces, dtype=np.float32)
    adjacent[tuple(edges.T)] = 1
    return np.linalg.matrix_power(adjacent + adjacent.T, 16) > 0


def same_cluster(labels):
    return labels[:, None] == labels


def test_connectivity_is_symmetrised_and_summed_to_density(graphs):
    for graph, directed, _, _ in graphs:
        both = dense(directed, graph.indices)
        symmetric = symmetrise(directed, graph.indices)
        assert np.array_equal(symmetric, np.take_along_axis((both + both.T) / 2, graph.indices, axis=1))
        weights = dense(symmetric, graph.indices) * dense(graph.similarities, graph.indices)
        np.fill_diagonal(weights, 0)
        assert np.array_equal(density(symmetric, graph.similarities), weights.sum(axis=1))


def test_density_edges_and_similar_edges(graphs):
    for graph, directed, threshold, _ in graphs:
        connectivity = symmetrise(directed, graph.indices)
        densities = density(connectivity, graph.similarities)
        edges_density, edges_similar = select_edges(graph, connectivity, densities, threshold)
        weights = dense(connectivity, graph.indices) * dense(graph.similarities, graph.indices)
        weights[densities <= densities[:, None]] = 0
        best = weights.max(axis=1)
        assert np.array_equal(edges_density[:, 0], np.flatnonzero(best > 0))
        for face, other in edges_density:  # of equal weights, the first in the row
            row = graph.indices[face]
            assert other == row[np.flatnonzero(weights[face, row] == best[face])[0]]
        similar = weights >= threshold
        similar[tuple(edges_density.T)] = False
        assert np.array_equal(edges_similar, np.argwhere(np.triu(similar | similar.T)))
        of_edges = values_of_edges(connectivity, edges_density, graph.indices)
        assert np.array_equal(of_edges, dense(connectivity, graph.indices)[tuple(edges_density.T)])


def test_edges_above_a_threshold(graphs):
    for graph, _, threshold, _ in graphs:
        similarities = dense(graph.similarities, graph.indices)
        np.fill_diagonal(similarities, 0)
        kept = np.where(similarities >= threshold, similarities, 0)
        edges, weights = edges_above(graph, threshold)
        assert np.array_equal(edges[np.lexsort(edges.T[::-1])], np.argwhere(kept))
        assert np.array_equal(weights, kept[tuple(edges.T)])
        undirected = np.triu(np.maximum(kept, kept.T))
        upper = _upper_triangle(graph, graph.similarities >= threshold, None)
        assert np.array_equal(upper.toarray(), undirected)
        pairs, position = distinct_pairs(edges)
        assert np.array_equal(pairs, np.argwhere(undirected))
        assert np.array_equal(np.sort(edges[position], axis=1), pairs)


def test_components_and_joined_clusters(graphs):
    for graph, _, threshold, seed in graphs:
        rng, num_faces = np.random.default_rng(seed), len(graph)
        edges = rng.permutation(edges_above(graph, threshold)[0])
        assert np.array_equal(same_cluster(connected_labels(edges, num_faces)), reachable(edges, num_faces))
        joined, candidates = np.split(edges, [len(edges) // 3])
        answers = rng.choice([0.25, 0.5, 0.75], size=(num_faces, num_faces)).astype(np.float32)  # some at the threshold
        labels, _ = join_clusters(joined, candidates, num_faces, lambda asked, a=answers: a[tuple(asked.T)], 0.5)
        accepted = candidates[answers[tuple(candidates.T)] > 0.5]
        assert np.array_equal(same_cluster(labels), reachable(np.concatenate([joined, accepted]), num_faces))


def test_sums_over_shared_neighbours(graphs):
    for graph, directed, _, _ in graphs:
        products = dense(directed, graph.indices) @ dense(graph.similarities, graph.indices).T
        expected = np.take_along_axis(products, graph.indices, axis=1)
        assert np.array_equal(sums_over_shared(directed, graph.similarities, graph.indices), expected)


def test_neighbours_are_the_most_similar_faces():
    """Of faces on the corners of a cube, many of which are alike."""
    rng = np.random.default_rng(0)
    for _ in range(1_000):
        corners = rng.choice([-0.5, 0.5], size=(rng.integers(2, 13), 4)).astype(np.float32)
        k, similarities = int(rng.integers(2, len(corners) + 1)), corners @ corners.T
        found = build_knn(corners, k)
        assert np.array_equal(found.indices[:, 0], np.arange(len(corners)))
        assert all(len(set(row)) == k for row in found.indices.tolist())
        assert np.array_equal(found.similarities, np.take_along_axis(similarities, found.indices, axis=1))
        np.fill_diagonal(similarities, 2)  # the face itself stands before its copies
        assert np.array_equal(found.similarities[:, 1:], -np.sort(-similarities, axis=1)[:, 1:k])
