import numpy as np
import pytest

from lcde.clustering.nodes import (
    CONTEXT,
    CONTEXT_WIDTH,
    FACES_WIDTH,
    GALLERY_WIDTH,
    NODE_WIDTH,
    SHOWN,
    describe,
    impostor_fit,
    pool,
    shown_faces,
)


@pytest.fixture
def clusters():
    """300 faces of 30 identities, each in one to three clusters."""
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(30), 10)
    features = rng.standard_normal((30, 24))[identities] + 0.8 * rng.standard_normal((300, 24))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = np.unique(identities * 3 + rng.integers(3, size=300), return_inverse=True)[1]
    return features.astype(np.float32), labels


def test_a_node_is_the_mean_of_its_faces(clusters):
    features, labels = clusters
    nodes = pool(features, labels)
    for node in range(len(nodes.sizes)):
        mean = features[labels == node].mean(axis=0)
        assert nodes.sizes[node] == (labels == node).sum()
        assert nodes.resultants[node] == pytest.approx(np.linalg.norm(mean), rel=1e-5)
        np.testing.assert_allclose(nodes.directions[node], mean / np.linalg.norm(mean), atol=1e-5)


def test_corrected_similarity_compares_pairs_across_with_pairs_within():
    """For large clusters, whose similarity within is hardly drawn to that of the gallery."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 400)
    means = np.array([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1]])[labels]
    features = np.concatenate([means, np.zeros((1200, 37))], axis=1) + 0.15 * rng.standard_normal((1200, 40))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    graph = describe(features, labels, 3)
    similarities = features @ features.T
    blocks = [similarities[i : i + 400, i : i + 400] for i in (0, 400, 800)]
    within = [(block.sum() - 400) / (400 * 399) for block in blocks]
    for first, row in enumerate(graph.graph.indices):
        for second, similarity in zip(row[1:], graph.graph.similarities[first, 1:], strict=True):
            across = similarities[labels == first][:, labels == second].mean()
            expected = across / np.sqrt(within[first] * within[second])
            assert similarity * graph.correction[first] * graph.correction[second] == pytest.approx(expected, abs=0.01)


def test_the_faces_shown_reach_from_the_farthest_to_the_nearest(clusters):
    features, labels = clusters
    directions = pool(features, labels).directions
    shown = shown_faces(features, labels, directions)
    assert shown.shape == (len(directions), SHOWN)
    for cluster, faces in enumerate(shown):
        own = np.flatnonzero(labels == cluster)
        to_mean = features[own] @ directions[cluster]
        assert set(faces) <= set(own)
        ends = features[faces[[0, -1]]] @ directions[cluster]
        np.testing.assert_allclose(ends, [to_mean.min(), to_mean.max()], atol=1e-6)
        assert len(np.unique(faces)) == min(SHOWN, len(own))


def test_descriptions_do_not_change_with_the_order_of_faces(clusters):
    features, labels = clusters
    order = np.random.default_rng(0).permutation(len(labels))
    number = np.random.default_rng(1).permutation(labels.max() + 1)
    expected, found = describe(features, labels, 10), describe(features[order], number[labels[order]], 10)
    for name in ("own", "correction", "features", "near", "faces"):
        np.testing.assert_allclose(getattr(found, name)[number], getattr(expected, name), atol=2e-4)
    for name in ("impostors", "gallery", "context"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-4)


def test_descriptions_do_not_change_with_a_rotation_or_with_coordinates_that_are_zero(clusters):
    features, labels = clusters
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((24, 24)))[0].astype(np.float32)
    expected = describe(features, labels, 10)
    for other in (features @ rotation, np.concatenate([features, np.zeros_like(features)], axis=1)):
        found = describe(other, labels, 10)
        assert np.array_equal(found.graph.indices, expected.graph.indices)
        for name in ("impostors", "own", "correction", "features", "near", "faces", "gallery", "context"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-4)


@pytest.mark.parametrize("num_nodes", [2, 3, 5, 80])
def test_few_nodes_are_described_too(num_nodes):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((num_nodes, 16)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    graph = describe(features, np.arange(num_nodes), 24)
    assert graph.graph.k == min(24, num_nodes)
    for array, shape in (
        (graph.features, (num_nodes, NODE_WIDTH)),
        (graph.faces, (num_nodes, graph.graph.k, FACES_WIDTH)),
        (graph.gallery, (GALLERY_WIDTH,)),
        (graph.context, (CONTEXT, CONTEXT_WIDTH)),
    ):
        assert array.shape == shape
        assert np.isfinite(array).all()


def test_impostors_are_pairs_of_different_labels_and_no_copies(clusters):
    features, _ = clusters
    identities = np.repeat(np.arange(30), 10)
    alone = impostor_fit(features, identities)
    copied = impostor_fit(np.repeat(features, 2, axis=0), np.repeat(np.arange(300), 2))
    assert alone[0] == pytest.approx(copied[0], abs=0.05)
    assert alone[1] == pytest.approx(copied[1], abs=0.05)
    assert impostor_fit(features[:1], identities[:1]) == (0.0, 24**-0.5)
