import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage

from lcde.clustering.merging import Merging, pairs_of_clusters
from lcde.data.formats import normalise
from lcde.data.gallery import KNNGraph
from lcde.data.knn import build_knn

IDENTITIES = np.repeat(np.arange(60), [1] * 20 + [6] * 39 + [40])


def faces(labels, noise, dim=64, seed=0):
    rng = np.random.default_rng(seed)
    people = rng.standard_normal((labels.max() + 1, dim))
    return normalise((people[labels] + noise * rng.standard_normal((len(labels), dim))).astype(np.float32), "faces")


def merge(labels, features, threshold, edge_similarity=-1.0, num_known=0):
    """With all other faces as neighbours, in an order that does not matter."""
    num_faces = len(features)
    indices = (np.arange(num_faces)[:, None] + np.arange(num_faces)) % num_faces
    similarities = np.take_along_axis(features @ features.T, indices, axis=1)
    merging = Merging(labels, features, KNNGraph(indices, similarities), edge_similarity, num_known)
    (merging.by_average if callable(threshold) else merging.by_centroids)(threshold)
    return merging.labels


def same_clusters(labels, expected):
    return np.array_equal(labels[:, None] == labels, expected[:, None] == expected)


FEATURES = faces(IDENTITIES, noise=0.5)


def test_fragments_of_an_identity_merge():
    fragments = np.unique(IDENTITIES * 3 + np.arange(len(IDENTITIES)) % 3, return_inverse=True)[1]
    assert same_clusters(merge(fragments, FEATURES, 0.6), IDENTITIES)


def test_identities_stay_apart():
    assert same_clusters(merge(IDENTITIES, FEATURES, 0.6), IDENTITIES)


def test_clusters_that_no_edge_joins_stay_apart():
    features = normalise(np.array([[1, 0.9, 0], [1, -0.9, 0], [1, 0, 0.9], [1, 0, -0.9]], dtype=np.float32), "faces")
    halves = np.array([0, 0, 1, 1])
    assert merge(halves, features, 0.9, edge_similarity=0.5).tolist() == [0, 0, 0, 0]
    assert merge(halves, features, 0.9, edge_similarity=0.6).tolist() == [0, 0, 1, 1]


def test_pairs_merge_by_what_a_judge_says_of_the_clusters_that_are_left():
    features = faces(np.zeros(8, dtype=np.int64), noise=0.2)
    indices = (np.arange(8)[:, None] + np.arange(8)) % 8
    seen = []

    def judge(sums, sizes, pairs):
        seen.append(sizes.tolist())
        np.testing.assert_allclose(sums.sum(axis=0), features.sum(axis=0), rtol=1e-5)
        return np.where(sizes[pairs].sum(axis=1) <= 4, 10.0 - pairs.sum(axis=1), -1.0)

    def merged(num_known):
        graph = KNNGraph(indices, np.ones((8, 8), dtype=np.float32))
        merging = Merging(np.arange(8) // 2, features, graph, 0.5, num_known)
        log_odds = merging.by_judgement(judge)
        assert merging.num_clusters == len(np.unique(merging.labels))
        return merging.labels.tolist(), log_odds

    assert merged(0) == ([0, 0, 0, 0, 1, 1, 1, 1], np.mean([10 - 1, 10 - 5]))  # of clusters 0 and 1, 2 and 3
    assert seen == [[2, 2, 2, 2], [4, 2, 2], [4, 4]]
    assert merged(6) == ([0, 0, 1, 1, 2, 2, 0, 0], 10 - 3)  # of the first three clusters, no two


def test_log_odds_of_joined_clusters_are_those_of_the_start_by_pairs_of_their_faces():
    features, labels = faces(np.zeros(6, dtype=np.int64), noise=0.2), np.array([0, 0, 0, 1, 1, 2])
    indices = (np.arange(6)[:, None] + np.arange(6)) % 6
    merging = Merging(labels, features, KNNGraph(indices, np.ones((6, 6), dtype=np.float32)), 0.5)
    at_start = {(0, 1): 4.0, (0, 2): -3.0, (1, 2): -1.0}
    rounds = []

    def judge(sums, sizes, pairs):
        rounds.append(len(sizes))
        return np.array([at_start[tuple(pair)] if len(sizes) == 3 else 5.0 for pair in pairs])

    assert merging.by_judgement(judge) == (4 * 6 - 3 * 3 - 1 * 2) / (6 + 3 + 2)
    assert rounds == [3, 2]
    assert merging.by_judgement(judge) == 0  # nothing is left to merge


def test_known_clusters_keep_apart_and_their_numbers():
    features = faces(np.zeros(8, dtype=np.int64), noise=0.2)
    labels = np.array([1, 1, 0, 0, 2, 2, 3, 3])
    assert merge(labels, features, 0.6).tolist() == [0] * 8
    merged = merge(labels, features, 0.6, num_known=4)
    assert merged[:4].tolist() == [1, 1, 0, 0]
    assert set(merged[4:].tolist()) <= {0, 1}


def test_noise_stays_noise():
    features = faces(np.zeros(6, dtype=np.int64), noise=0.2)
    assert merge(np.array([0, -1, 1, -1, 2, 2]), features, 0.6).tolist() == [0, -1, 0, -1, 0, 0]
    assert merge(np.full(6, -1), features, 0.6).tolist() == [-1] * 6


def test_centroids_separate_identities_better_than_faces():
    labels = np.repeat(np.arange(40), 20)
    features = faces(labels, noise=1.6)
    similarities = features @ features.T
    different = labels[:, None] != labels
    assert similarities[different].max() > np.quantile(similarities[~different], 0.5)
    quarters = labels * 4 + np.arange(len(labels)) % 4
    assert same_clusters(merge(quarters, features, 0.45), labels)


def test_faces_all_alike_are_one_cluster():
    features, one = np.full((7, 4), 0.5, dtype=np.float32), np.zeros(7, dtype=np.int64)
    assert np.array_equal(merge(np.arange(7), features, 0.9), one)


def test_clusters_merge_by_centroids_and_then_by_average():
    """As they do in turn, each from faces."""
    labels = np.repeat(np.arange(12), 9)
    features, parts = faces(labels, noise=1.2), np.arange(len(labels)) // 2
    graph = build_knn(features, 100)
    merging = Merging(parts, features, graph, -1.0)
    merging.by_centroids(0.65)
    first = merging.labels
    merging.by_average(lambda _: 0.3)
    again = Merging(first, features, graph, -1.0)
    again.by_average(lambda _: 0.3)
    assert len(parts) > len(np.unique(parts)) > len(np.unique(first)) > len(np.unique(merging.labels)) > 1
    assert np.array_equal(merging.labels, again.labels)


def test_pairs_of_clusters_are_those_that_an_edge_connects(monkeypatch):
    monkeypatch.setattr("lcde.data.gallery.ROWS", 7)
    graph = build_knn(FEATURES, 6)
    labels = np.where(IDENTITIES == 30, -1, IDENTITIES)
    for first_row in (0, 10):
        expected = {
            tuple(sorted((labels[face], labels[other])))
            for face, row in list(enumerate(graph.indices.tolist()))[first_row:]
            for other, similarity in zip(row[1:], graph.similarities[face, 1:], strict=True)
            if similarity >= 0.3 and labels[face] != labels[other] and min(labels[face], labels[other]) >= 0
        }
        assert expected
        assert list(map(tuple, pairs_of_clusters(labels, graph, 0.3, first_row).tolist())) == sorted(expected)


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.floats(0.3, 2), st.floats(-0.5, 0.9))
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
    assert same_clusters(merge(labels, features, threshold), expected)


@given(st.integers(0, 2**31), st.floats(-0.2, 0.9))
def test_merging_by_average_is_hierarchical_clustering_by_average_linkage(seed, threshold):
    rng = np.random.default_rng(seed)
    features = faces(rng.integers(6, size=40), noise=rng.uniform(0.3, 2), dim=8, seed=seed)
    distances = 1 - features @ features.T
    tree = linkage(distances[np.triu_indices(40, 1)], "average")
    expected = fcluster(tree, 1 - threshold, "distance")
    if np.abs(tree[:, 2] - (1 - threshold)).min() > 1e-4:  # no merge is a matter of rounding
        assert same_clusters(merge(np.arange(40), features, lambda _: threshold), expected)


def test_the_threshold_of_a_merge_by_average_follows_the_number_of_clusters_left():
    features = faces(np.arange(12) // 3, noise=0.3, dim=64)
    asked = []

    def threshold(left):
        asked.append(left)
        return 0.5

    merged = merge(np.arange(12), features, threshold)
    assert same_clusters(merged, np.arange(12) // 3)
    assert asked[0] == 12
    assert asked == sorted(asked, reverse=True)
    assert asked[-1] == 4
    never = merge(np.arange(12), features, lambda left: 0.5 if left > 12 else np.inf)
    assert same_clusters(never, np.arange(12))


def test_merging_by_average_keeps_known_clusters_and_noise():
    features = faces(np.zeros(8, dtype=np.int64), noise=0.2)
    labels = np.array([1, 1, 0, -1, 2, 2, 3, 3])
    merged = merge(labels, features, lambda _: 0.6, num_known=4)
    assert merged[:4].tolist() == [1, 1, 0, -1]
    assert set(merged[4:].tolist()) <= {0, 1}
