import numpy as np
import pytest
import torch

from benchmarks.ablation import load_module
from lcde.clustering.communities import communities
from lcde.clustering.density import density, symmetrise
from lcde.clustering.impostors import Impostors
from lcde.clustering.likelihood import TwoCovariance
from lcde.clustering.merging import Merging
from lcde.clustering.transformed import Transformed
from lcde.clustering.whitening import Whitened, common_offset, transformed, within_cluster_whitening
from lcde.configuration import build, compose_config
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery, KNNGraph
from lcde.data.knn import build_knn
from lcde.data.search import edge_similarities
from lcde.errors import InputError
from lcde.methods.unsupervised import UnsupervisedRule
from lcde.metrics import Contingency, bcubed, pairwise


def gallery_of(features, k, labels=None):
    features = normalise(features.astype(np.float32), "faces")
    return Gallery("test", features, build_knn(features, k), labels)


def same_clusters(found, expected):
    return np.array_equal(found[:, None] == found, expected[:, None] == expected)


def faces(rng, labels, dim, noise=0.5):
    return rng.standard_normal((labels.max() + 1, dim))[labels] + noise * rng.standard_normal((len(labels), dim))


@pytest.fixture
def varied():
    """Faces that all differ most along the same two directions."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 8)
    features = faces(rng, labels, 64)
    features[:, :2] += 4 * rng.standard_normal((800, 2))
    return gallery_of(features, 40, labels)


def test_identities_of_one_and_of_many_faces_are_found():
    labels = np.repeat(np.arange(150), [*([1] * 100), *([10] * 49), 300])
    found = UnsupervisedRule()(gallery_of(faces(np.random.default_rng(0), labels, 64), 20)).labels
    assert found.dtype == np.int64
    assert len(set(zip(found.tolist(), labels.tolist(), strict=True))) <= 153
    assert abs(len(np.unique(found)) - 150) <= 3


def test_pairs_are_found_in_a_small_gallery_of_mostly_singletons():
    labels = np.repeat(np.arange(90), [1] * 80 + [2] * 10)
    found = UnsupervisedRule()(gallery_of(faces(np.random.default_rng(0), labels, 128), 20)).labels
    assert same_clusters(found, labels)


@pytest.mark.parametrize("times", [2, 8])
def test_columns_of_zeros_change_no_cluster(times, varied):
    features = varied.features
    padded = np.concatenate([features, np.zeros((len(features), (times - 1) * features.shape[1]), np.float32)], axis=1)
    expected = UnsupervisedRule()(varied).labels
    assert 80 < expected.max() < 200
    assert np.array_equal(UnsupervisedRule()(Gallery("padded", padded, varied.graph)).labels, expected)


@pytest.mark.parametrize("whitening", [True, False])
def test_whitening_lets_variation_within_all_clusters_count_less(whitening, varied):
    rule = UnsupervisedRule(whitening=whitening, expected_merges=0, merge_trees=None)  # these whiten by themselves
    found = rule(varied).labels
    f_score = bcubed(Contingency.of(varied.labels_true, found)).f_score
    assert f_score > 0.9 if whitening else f_score < 0.8


def test_without_merging_clusters_are_finer(varied):
    merged, unmerged = (UnsupervisedRule(merging=merging)(varied).labels for merging in (True, False))
    assert unmerged.max() > merged.max()


def test_centring_removes_what_all_faces_share():
    """Where centring is off, an offset leaves hardly any difference between genuine and impostor pairs."""
    labels, rng = np.repeat(np.arange(10), 10), np.random.default_rng(0)
    features = faces(rng, labels, 64) + 30 * np.eye(64)[0]
    found, without = (
        UnsupervisedRule(centring=centring, whitening=False)(gallery_of(features, 20)).labels
        for centring in (True, False)
    )
    assert same_clusters(found, labels)
    assert not same_clusters(without, labels)


def test_details_are_of_transformed_faces(make_gallery, monkeypatch):
    gallery, given = make_gallery(0, num_faces=200), []
    monkeypatch.setattr(
        "lcde.clustering.whitening.transformed", lambda *args: given.append(transformed(*args)) or given[-1]
    )
    details = UnsupervisedRule()(gallery).details
    features, indices = given[-1][:], gallery.graph.indices
    assert len(given) == 2  # in each pass
    assert abs(features @ features.T - gallery.features @ gallery.features.T).max() > 0.01
    weights = edge_similarities(features, indices)
    above = (weights >= details.similarity_threshold).astype(np.float32)
    assert 200 < above.sum() < above.size
    assert np.array_equal(details.connectivity, symmetrise(above, indices))
    assert details.density == pytest.approx(density(details.connectivity, weights))
    assert details.edges_similar is details.edges_density is details.edge_probability is None


def test_the_second_pass_follows_from_the_first_clusters(make_gallery):
    """The rule, step by step."""
    gallery, labels = make_gallery(0, num_faces=200), np.arange(200)
    given, indices, similarities = gallery.features, gallery.graph.indices, gallery.graph.similarities
    for number in range(2):
        offset = common_offset(given, labels, Impostors.of(given, labels, similarities).mean)
        features = Transformed(given, offset, within_cluster_whitening(given, labels))[:]
        graph = KNNGraph(indices, edge_similarities(features, indices))
        impostors = Impostors.of(features, labels, graph.similarities)
        threshold = impostors.similarity(0.0003)
        rows, columns = np.nonzero(graph.similarities[:, 1:] >= threshold)
        edges = np.stack([rows, indices[rows, columns + 1]], axis=1)
        labels = communities(edges, graph.similarities[rows, columns + 1], 200, 2, seed=0)
        alike = impostors.with_look_alikes(0.0003) if number else threshold
        merging = Merging(labels, features, graph, impostors.similarity(10))
        merging.by_centroids(alike)
        labels = merging.labels

    def mean_similarity(left):
        return impostors.between_clusters(left, 0.1)

    merging = Merging(labels, features, graph, impostors.similarity(10))
    merging.by_average(mean_similarity)
    if (model := TwoCovariance.of(features, merging.labels)) is not None:
        merging.by_likelihood(model, 1)
    found = UnsupervisedRule(num_trials=2)(gallery)
    assert found.details.similarity_threshold == pytest.approx(threshold, abs=1e-5)
    assert np.array_equal(found.labels, merging.labels)


@pytest.fixture
def weak():
    """Faces that differ from their own identity about as much as from others: 12 people, 20 photographs each."""
    labels = np.repeat(np.arange(12), 20)
    return gallery_of(faces(np.random.default_rng(0), labels, 128, noise=1.5), 80, labels)


@pytest.mark.parametrize(("trees", "most"), [(None, 10), ("shipped", 20)])  # of 40 galleries
def test_few_different_people_merge(trees, most):
    wrong, rule = 0, UnsupervisedRule(merge_trees=trees)
    for seed in range(40):
        found = rule(gallery_of(np.random.default_rng(seed).standard_normal((30, 64)), 30)).labels
        wrong += 29 - found.max()
    assert wrong <= most


def f_score(gallery, rule):
    return pairwise(Contingency.of(gallery.labels_true, rule(gallery).labels)).f_score


def test_where_people_have_many_photographs_some_wrong_edges_are_accepted(weak):
    assert f_score(weak, UnsupervisedRule(false_edges=0, merge_trees=None)) < 0.9
    assert f_score(weak, UnsupervisedRule(merge_trees=None)) > 0.97


def test_faces_of_few_edges_keep_the_strict_threshold(weak):
    """People of one photograph among those of many are not joined by the edges that the others accept."""
    rng, dim = np.random.default_rng(1), weak.features.shape[1]
    alone = rng.standard_normal((60, dim)) * np.linalg.norm(weak.features.std(axis=0))
    labels = np.append(weak.labels_true, 12 + np.arange(60))
    gallery = gallery_of(np.concatenate([weak.features, alone / np.sqrt(dim)]), 80, labels)
    for rule in (UnsupervisedRule(false_edges=0), UnsupervisedRule()):
        found = rule(gallery).labels
        assert len(np.unique(found[-60:])) >= 57


@pytest.mark.parametrize(("num_alone", "lower"), [(0, True), (90, True), (110, True), (200, False), (300, False)])
def test_the_threshold_falls_where_the_middle_of_the_faces_has_many_edges(num_alone, lower):
    """Ten people of twelve photographs each among others of one."""
    rng = np.random.default_rng(0)
    people = np.repeat(np.eye(10, 64), 12, axis=0) + 0.05 * rng.standard_normal((120, 64))
    alone = rng.standard_normal((num_alone, 64))
    gallery = gallery_of(np.concatenate([people, alone]), 20)
    labels = np.append(np.repeat(np.arange(10), 12), 10 + np.arange(num_alone))
    whitened = Whitened.by(gallery, labels, centring=False, whitening=False)
    strict = UnsupervisedRule().strict_threshold(whitened)
    assert (UnsupervisedRule()._counted_edges(whitened)[1] < strict) == lower


def test_edges_below_the_strict_threshold_count_between_faces_of_many_edges(weak):
    graph = weak.graph
    dim, impostors = weak.features.shape[1], Impostors.of(weak.features, weak.labels_true, graph.similarities)
    unchanged = np.zeros(dim, dtype=np.float32), np.eye(dim, dtype=np.float32)
    whitened = Whitened(Transformed(weak.features, *unchanged), graph, impostors)
    strict = whitened.impostors.similarity(0.0003)
    counted, threshold = UnsupervisedRule()._counted_edges(whitened)
    assert threshold < strict
    many = (graph.similarities[:, 1:] >= threshold).sum(axis=1) > 2
    for face, row in enumerate(graph.indices):
        for place, other in enumerate(row):
            similarity = graph.similarities[face, place]
            counts = place == 0 or similarity >= strict or (many[face] and many[other])
            assert counted[face, place] == (counts and similarity >= threshold)
    counted, unchanged = UnsupervisedRule(false_edges=0)._counted_edges(whitened)
    assert np.array_equal(counted, graph.similarities >= strict)
    assert unchanged == strict


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dim", [2, 16])
def test_few_faces_are_handled(count, dim):
    """As many neighbours as faces."""
    apart = np.stack([np.cos(2 * np.arange(count)), np.sin(2 * np.arange(count))], axis=1) @ np.eye(2, dim)
    assert same_clusters(UnsupervisedRule()(gallery_of(apart, count)).labels, np.arange(count))
    assert UnsupervisedRule()(gallery_of(np.ones((count, dim)), count)).labels.tolist() == [0] * count


@pytest.mark.parametrize(("count", "k"), [(5, 3), (12, 12), (300, 20)])
@pytest.mark.parametrize("noise", [0, 1e-3])
def test_faces_all_alike_are_one_cluster(count, k, noise):
    features = np.ones((count, 16)) + noise * np.random.default_rng(0).standard_normal((count, 16))
    assert UnsupervisedRule()(gallery_of(features, k)).labels.tolist() == [0] * count


def test_copies_of_faces_are_found():
    labels = np.repeat(np.arange(30), 4)
    features = np.random.default_rng(0).standard_normal((30, 64))[labels]
    assert same_clusters(UnsupervisedRule()(gallery_of(features, 10)).labels, labels)


@pytest.mark.parametrize("sizes", [[1] * 300, [10] * 10])
def test_galleries_of_singletons_and_of_few_people_are_clustered(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    gallery = gallery_of(faces(np.random.default_rng(0), labels, 128), 20)
    assert same_clusters(UnsupervisedRule()(gallery).labels, labels)


def test_all_faces_may_be_neighbours():
    labels = np.repeat(np.arange(20), 5)
    gallery = gallery_of(faces(np.random.default_rng(0), labels, 64), 100)
    assert same_clusters(UnsupervisedRule()(gallery).labels, labels)


def test_one_seed_gives_one_result(varied):
    first, second = (UnsupervisedRule(num_trials=1, seed=5)(varied).labels for _ in range(2))
    assert np.array_equal(first, second)


def test_neither_threads_nor_blocks_change_the_clusters(varied, monkeypatch):
    expected, threads = UnsupervisedRule(num_trials=1)(varied).labels, torch.get_num_threads()
    monkeypatch.setattr("lcde.data.gallery.ROWS", 7)
    monkeypatch.setattr("lcde.data.search.GATHERED_ROWS", 7)
    torch.set_num_threads(3)
    try:
        assert np.array_equal(UnsupervisedRule(num_trials=1)(varied).labels, expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"impostors_per_face": None}, "impostors_per_face=None must be a number of at least 0"),
        ({"impostors_per_face": -1}, r"clustering\.impostors_per_face=-1 must be a number of at least 0\."),
        ({"num_trials": 1.5}, r"num_trials=1\.5 must be a whole number of at least 1"),
        ({"whitening": "on"}, "whitening=on must be True or False"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        UnsupervisedRule(**settings)


def real_gallery(shared, name):
    galleries = load_module(shared / "galleries" / "regimes.py").galleries()
    features, labels = next((features, labels) for found, features, labels in galleries if found == name)
    return gallery_of(features, 80, labels)


@pytest.mark.slow
def test_likelihood_merges_fragments_of_real_people(shared):
    gallery = real_gallery(shared, "dlib128/all")
    assert f_score(gallery, UnsupervisedRule()) > f_score(gallery, UnsupervisedRule(expected_merges=0)) + 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gain"), [("facenet512/frames", 0.05), ("dlib128/few-each", 0.03)])
def test_average_linkage_merges_fragments_of_real_people(name, gain, shared):
    gallery = real_gallery(shared, name)
    with_linkage, without = (UnsupervisedRule(impostor_merges=wrong, merge_trees=None) for wrong in (0.1, 0))
    assert f_score(gallery, with_linkage) > f_score(gallery, without) + gain


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bound"), [("lfw-mixed", 0.92), ("lfw", 0.97)])
def test_real_faces_cluster_well_without_labels(name, bound, shared):
    """The settings were chosen on the training parts."""
    folder = shared / "data" / name
    labels = np.loadtxt(folder / "labels" / "part1_test.meta", dtype=np.int64)
    features = np.fromfile(folder / "features" / "part1_test.bin", dtype=np.float32).reshape(len(labels), -1)
    table = Contingency.of(labels, UnsupervisedRule()(gallery_of(features, 80)).labels)
    assert min(pairwise(table).f_score, bcubed(table).f_score) >= bound


def test_small_synthetic_galleries_are_clustered():
    for identities in (60, 100, 150):  # the threshold of the second pass once left 100 identities as singletons
        sizes = f"dataset.num_identities={{part0_train:60,part1_test:{identities},part2_test:50}}"
        gallery = (
            build(compose_config("eval", [sizes, "dataset.parts=[part1_test]"]).dataset).load(train=False).evaluation[0]
        )
        table = Contingency.of(gallery.labels_true, UnsupervisedRule(num_trials=2)(gallery).labels)
        assert pairwise(table).f_score > 0.6


def test_an_album_of_one_person_and_a_few_strangers():
    labels = np.repeat(np.arange(16), [300] + [1] * 15)
    found = UnsupervisedRule()(gallery_of(faces(np.random.default_rng(0), labels, 128), 80)).labels
    assert same_clusters(found, labels)
