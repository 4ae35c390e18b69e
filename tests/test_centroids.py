import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lcde.clustering.centroids import merge_clusters, split_clusters
from lcde.data.formats import normalise

IDENTITIES = np.repeat(np.arange(60), [1] * 20 + [6] * 39 + [40])


def faces(labels, noise, dim=64, seed=0):
    rng = np.random.default_rng(seed)
    people = rng.standard_normal((labels.max() + 1, dim))
    return normalise((people[labels] + noise * rng.standard_normal((len(labels), dim))).astype(np.float32), "faces")


def all_pairs(num_faces):
    return np.stack(np.triu_indices(num_faces, 1), axis=1)


def same_clusters(labels, expected):
    return np.array_equal(labels[:, None] == labels, expected[:, None] == expected)


FEATURES = faces(IDENTITIES, noise=0.5)
PAIRS = all_pairs(len(FEATURES))


def test_fragments_of_an_identity_merge():
    fragments = np.unique(IDENTITIES * 3 + np.arange(len(IDENTITIES)) % 3, return_inverse=True)[1]
    assert same_clusters(merge_clusters(fragments, FEATURES, PAIRS, 0.6), IDENTITIES)


def test_identities_in_one_cluster_split():
    many = IDENTITIES[IDENTITIES >= 20]
    features = FEATURES[IDENTITIES >= 20]
    assert same_clusters(split_clusters(many // 2, features, 0.6), many)


def test_identities_that_are_found_stay_as_they_are():
    assert same_clusters(split_clusters(IDENTITIES, FEATURES, 0.6), IDENTITIES)
    assert same_clusters(merge_clusters(IDENTITIES, FEATURES, PAIRS, 0.6), IDENTITIES)


def test_pairs_are_never_split():
    pair = np.zeros(2, dtype=np.int64)
    assert np.array_equal(split_clusters(pair, np.eye(2, dtype=np.float32), 0.6), pair)


def test_clusters_that_no_edge_joins_stay_apart():
    halves = np.array([0, 0, 1, 1, 2, 2])
    features = faces(np.zeros(6, dtype=np.int64), noise=0.1)
    merged = merge_clusters(halves, features, np.array([[1, 2]]), 0.6)
    assert merged.tolist() == [0, 0, 0, 0, 1, 1]


def test_centroids_tell_more_than_faces():
    labels = np.repeat(np.arange(100), 20)
    features = faces(labels, noise=1.6)
    similarities = features @ features.T
    different = labels[:, None] != labels
    assert similarities[different].max() > np.quantile(similarities[~different], 0.5)
    quarters = labels * 4 + np.arange(len(labels)) % 4
    assert same_clusters(merge_clusters(quarters, features, all_pairs(len(labels)), 0.45), labels)


def test_faces_all_alike_are_one_cluster():
    features, one = np.full((7, 4), 0.5, dtype=np.float32), np.zeros(7, dtype=np.int64)
    assert np.array_equal(split_clusters(one, features, 0.9), one)
    assert np.array_equal(merge_clusters(np.arange(7), features, all_pairs(7), 0.9), one)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.floats(0, 2), st.floats(-0.5, 0.9))
def test_merging_is_that_of_all_centroids_compared_in_turn(seed, num_faces, noise, threshold):
    rng = np.random.default_rng(seed)
    features = faces(rng.integers(0, 8, num_faces), noise, 8, seed)
    labels = np.unique(rng.integers(0, num_faces, num_faces), return_inverse=True)[1]
    expected = labels.copy()
    while True:
        clusters = np.unique(expected)
        centroids = np.stack([features[expected == cluster].sum(axis=0) for cluster in clusters])
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
        similarity = centroids @ centroids.T - 9 * np.eye(len(clusters))
        best = similarity.argmax(axis=1)
        partners = [
            (first, second)
            for first, second in enumerate(best)
            if best[second] == first < second and similarity[first, second] > threshold
        ]
        if not partners:
            break
        for first, second in partners:
            expected[expected == clusters[second]] = clusters[first]
    assert same_clusters(merge_clusters(labels, features, all_pairs(num_faces), threshold), expected)
