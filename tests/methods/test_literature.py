"""Methods of the literature that need no training, on ten points of a circle whose values were computed apart."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import DBSCAN

from lcde.clustering.components import connected_labels, separate_noise
from lcde.configuration import build, compose_config
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.methods.cdp import CDPRule, bounded_components
from lcde.methods.chinese_whispers import ChineseWhispersRule
from lcde.methods.classical import ThresholdRule, choose_threshold
from lcde.methods.dbscan import DBSCANRule
from lcde.methods.facemap import FaceMapRule, added, last_before_drop
from lcde.methods.fces import FCESRule, edge_probability
from lcde.methods.hdbscan import HDBSCANRule
from lcde.methods.hierarchical import AverageLinkageRule
from lcde.methods.kmeans import KMeansRule

needs_infomap = pytest.mark.skipif(importlib.util.find_spec("infomap") is None, reason="the package infomap is missing")


@pytest.fixture
def people():
    """Twelve identities of ten faces that hardly differ, and a face that is like no other."""
    rng = np.random.default_rng(0)
    labels = np.append(np.repeat(np.arange(12), 10), 12)
    faces = rng.standard_normal((13, 64))[labels] + 0.5 * rng.standard_normal((121, 64))
    features = normalise(faces.astype(np.float32), "faces")
    return Gallery("people", features, build_knn(features, 30), labels)


def same_clusters(found, expected):
    return np.array_equal(found[:, None] == found, expected[:, None] == expected)


@pytest.mark.parametrize(
    "choice",
    [
        *("hac", "dbscan", "hdbscan", "kmeans", "chinese_whispers", "facemap", "cdp"),
        pytest.param("fces", marks=needs_infomap),
    ],
)
def test_each_method_finds_well_separated_people(choice, people):
    rule = build(compose_config("eval", [f"clustering={choice}"]).clustering)
    if choice == "fces":  # with many more neighbours than faces of a person, those of strangers weigh too much
        people = replace(people, graph=build_knn(people.features, 10))
    if isinstance(rule, ThresholdRule):
        rule.threshold = choose_threshold(rule, people)
    result = rule(people)
    assert result.labels.dtype == np.int64
    assert np.array_equal(np.unique(result.labels), np.arange(result.labels.max() + 1))
    if choice == "facemap":  # at least eleven links a face: nobody is left alone
        assert same_clusters(result.labels[:120], people.labels_true[:120])
    elif choice == "kmeans":  # a local optimum
        assert result.labels.max() == 12
    else:
        assert same_clusters(result.labels, people.labels_true)
    assert min(result.seconds.values()) >= 0


def test_neighbour_based_edge_probability_is_the_published_one(circle):
    probability = edge_probability(circle.graph)
    assert probability[3] == pytest.approx([1, 1, 1, 1, 0.5838], abs=1e-4)
    assert circle.graph.indices[5].tolist() == [5, 4, 6, 3, 7]
    assert probability[5, 1:] == pytest.approx([0.8561, 0.8576, 0.3885, 0.6185], abs=1e-4)


def test_edge_probability_does_not_depend_on_block_size(circle, monkeypatch):
    whole = edge_probability(circle.graph)
    monkeypatch.setattr("lcde.clustering.shared_neighbours.ROWS", 3)
    assert np.array_equal(edge_probability(circle.graph), whole)


@needs_infomap
def test_lists_are_cut_at_the_first_weak_neighbour(circle):
    rule = FCESRule(0.6)
    edges, weights = rule._edges(rule.weigh(circle, None), 0.6)
    assert len(edges) == 30
    assert edges[edges[:, 0] == 5].tolist() == [[5, 4], [5, 6]]  # 7 has 0.6185, but comes after 3
    assert weights.min() >= 0.6


@needs_infomap
def test_a_face_without_links_is_alone():
    rng = np.random.default_rng(0)
    features = normalise(rng.standard_normal((20, 3)).astype(np.float32), "faces")
    gallery = Gallery("test", features, build_knn(features, 5))
    rule = FCESRule(0.75)
    edges, _ = rule._edges(rule.weigh(gallery, None), 0.75)
    labels = rule(gallery).labels
    alone = np.setdiff1d(np.arange(20), edges[:, 0])
    assert len(np.intersect1d(alone, edges[:, 1]))  # others link to it
    assert (np.bincount(labels)[labels[alone]] == 1).all()


def test_lists_are_cut_at_the_largest_drop(circle):
    walk = circle.graph.similarities[:, 1:] / circle.graph.similarities[:, 1:].sum(axis=1, keepdims=True)
    assert last_before_drop(walk.astype(np.float64), 2).tolist() == [1] * 10


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_the_largest_drop_is_that_of_the_formula(seed, window):
    rng = np.random.default_rng(seed)
    walk = -np.sort(-rng.random((5, 12)), axis=1)
    for row, found in zip(walk, last_before_drop(walk, window), strict=True):
        drops = row[:-1] - row[1:]
        scores = {
            start + (window + 1) // 2: abs(drops[start : start + window].mean() - drops[start:].mean())
            / drops[start:].std()
            for start in range(len(drops) - window + 1)
            if drops[start:].std() > 1e-9
        }
        assert scores[found] == pytest.approx(max(scores.values()))


def test_weights_of_both_directions_add_up():
    edges, weights = added(np.array([[0, 1], [0, 2], [0, 1]]), np.array([0.25, 1.0, 0.5]))
    assert (edges.tolist(), weights.tolist()) == ([[0, 1], [0, 2]], [0.75, 1.0])


@pytest.mark.parametrize(
    ("max_size", "expected"), [(4, [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]), (3, [0, 0, 0, 1, 2, 2, 2, 3, 3, 4])]
)
def test_components_are_bounded_in_size(circle, max_size, expected):
    assert same_clusters(CDPRule(0.9, max_size=9)(circle).labels, np.array([0] * 9 + [1]))
    assert same_clusters(CDPRule(0.9, max_size=max_size)(circle).labels, np.array(expected))


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_components_of_allowed_size_are_final(seed, max_size):
    rng = np.random.default_rng(seed)
    edges, weights = rng.integers(0, 20, (30, 2)), rng.uniform(0.3, 0.95, 30)
    labels = bounded_components(edges, weights, 20, max_size, 0.2)
    assert np.bincount(labels).max() <= max_size
    whole = connected_labels(edges, 20)
    small = np.bincount(whole)[whole] <= max_size
    assert same_clusters(labels[small], whole[small])


@given(st.integers(0, 2**32 - 1), st.floats(-0.2, 0.9))
def test_average_linkage_with_all_neighbours_is_that_of_scipy(seed, threshold):
    features = np.random.default_rng(seed).standard_normal((30, 5)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    tree = linkage((1 - features @ features.T)[np.triu_indices(30, 1)], "average")
    if np.abs(tree[:, 2] - (1 - threshold)).min() > 1e-4:
        found = AverageLinkageRule(threshold)(Gallery("test", features, build_knn(features, 30))).labels
        assert same_clusters(found, fcluster(tree, 1 - threshold, "distance"))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_dbscan_with_all_neighbours_is_that_of_all_pairs(seed, min_samples):
    features = np.random.default_rng(seed).standard_normal((30, 3)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    gallery = Gallery("test", features, build_knn(features, 30))
    expected = DBSCAN(eps=0.2 + 1e-7, min_samples=min_samples, metric="cosine").fit_predict(features)
    assert same_clusters(DBSCANRule(0.8, min_samples=min_samples)(gallery).labels, separate_noise(expected))


def test_noise_becomes_clusters_of_one_face():
    assert separate_noise(np.array([0, -1, 1, 0, -1])).tolist() == [0, 2, 1, 0, 3]
    assert separate_noise(np.array([-1, -1])).tolist() == [0, 1]


def test_chinese_whispers_joins_a_face_to_the_heavier_side():
    """Two groups of four and a face that is a little more similar to the second."""
    features = np.zeros((9, 3), dtype=np.float32)
    features[:4, 0], features[4:8, 1], features[8] = 1, 1, (0.66, 0.75, 0)
    features = normalise(features, "faces")
    gallery = Gallery("test", features, build_knn(features, 9))
    assert same_clusters(ChineseWhispersRule(0.5)(gallery).labels, np.array([0] * 4 + [1] * 5))
    first, again = (ChineseWhispersRule(0.5, seed=3)(gallery).labels for _ in range(2))
    assert np.array_equal(first, again)


def test_k_means_takes_the_number_of_clusters(people):
    assert KMeansRule(5)(people).labels.max() == 4
    assert KMeansRule()(people).labels.max() == 12
    unlabelled = Gallery("faces", people.features, people.graph)
    with pytest.raises(InputError, match=r"clustering\.num_clusters=null needs labels"):
        KMeansRule()(unlabelled)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_faces_are_clustered(count):
    features = np.eye(count, 4, dtype=np.float32)
    gallery = Gallery("few", features, build_knn(features, count), np.arange(count))
    of_edges = [kind(0.5) for kind in (AverageLinkageRule, DBSCANRule, ChineseWhispersRule, CDPRule)]
    for rule in [*of_edges, HDBSCANRule(), KMeansRule()]:
        assert len(rule(gallery).labels) == count


def test_wrong_settings_are_named(people):
    with pytest.raises(InputError, match=r"needs dataset\.k of clustering\.window=30 plus 3 or more; .* 30 neighbours"):
        FaceMapRule(30)(people)


@pytest.mark.parametrize(
    ("kind", "key"),
    [(DBSCANRule, "min_samples"), (HDBSCANRule, "smallest"), (KMeansRule, "rounds"), (CDPRule, "max_size")],
)
def test_numbers_out_of_range_are_named(kind, key):
    with pytest.raises(InputError, match=rf"clustering\.{key}=0 must be a whole number of at least"):
        kind(**{key: 0})


def test_fces_says_which_package_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="fces needs the package infomap; pip install"):
        FCESRule()
