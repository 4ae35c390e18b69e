from dataclasses import replace

import numpy as np
import pytest

from lcde.clustering.edges import official_similarity_threshold
from lcde.clustering.impostors import FEWEST, HIGHEST, Impostors, fit_low_quantiles
from lcde.data.formats import normalise
from lcde.data.knn import build_knn


def gallery(sizes, dim, noise):
    """Features and identities of people of so many faces each, in a space of so many dimensions."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    people = normalise(rng.standard_normal((len(sizes), dim)).astype(np.float32), "people")
    noise = noise * rng.standard_normal((len(labels), dim)).astype(np.float32) / dim**0.5
    return normalise(people[labels] + noise, "gallery"), labels


def estimate(features, labels=None, k=8):
    """The estimate for faces of these clusters, each alone by default."""
    labels = np.arange(len(features)) if labels is None else labels
    return Impostors.of(features, labels, build_knn(features, min(k, len(features))).similarities)


def test_as_many_impostors_as_expected_reach_a_similarity():
    features, _ = gallery([1] * 2000, 256, noise=0)
    similarities = features @ features.T
    np.fill_diagonal(similarities, -1)
    impostors = estimate(features)
    for per_face in (0.1, 1, 10):
        reached = (similarities >= impostors.similarity(per_face)).sum() / 2000
        assert 0.7 * per_face < reached < 1.3 * per_face
    assert impostors.similarity(1000) == impostors.similarity(2000) == impostors.mean


def test_as_many_pairs_of_clusters_as_expected_reach_a_similarity():
    reached = 0
    for seed in range(40):
        features = np.random.default_rng(seed).standard_normal((40, 128)).astype(np.float32)
        features = normalise(features, "gallery")
        pairs = (features @ features.T)[np.triu_indices(40, 1)]
        reached += (pairs >= estimate(features).between_clusters(40, 2)).sum()
    assert 1.2 < reached / 40 < 3


def test_few_clusters_do_not_tell_how_similar_impostors_are():
    impostors = estimate(gallery([1] * 50, 64, noise=0)[0])
    assert impostors.between_clusters(FEWEST - 1, 1) == impostors.between_clusters(50, 0) == np.inf
    similarities = [impostors.between_clusters(count, 0.1) for count in (FEWEST, 50, 2_000)]
    assert similarities == sorted(similarities)
    assert similarities[-1] < 1


def test_a_sample_of_a_large_gallery_is_enough():
    features, _ = gallery([1] * 11_000, 64, noise=0)
    impostors = Impostors.of(features, np.arange(11_000), np.ones((11_000, 4), dtype=np.float32))
    assert impostors.num_faces == 11_000
    assert abs(impostors.mean) < 0.002
    assert abs(impostors.spread - 1 / 8) < 0.002


def test_normal_similarities_give_their_mean_and_spread():
    mean, spread = fit_low_quantiles(np.random.default_rng(0).normal(0.1, 0.06, 200_000))
    assert abs(mean - 0.1) < 0.002
    assert abs(spread - 0.06) < 0.002


@pytest.mark.parametrize("share", [0.9, 0.8, 0.5])
def test_the_estimate_is_of_impostors_even_if_half_of_the_pairs_are_genuine(share):
    rng = np.random.default_rng(0)
    impostors, genuine = rng.normal(0.1, 0.06, 200_000), rng.normal(0.7, 0.1, 200_000)
    mean, spread = fit_low_quantiles(np.where(rng.random(200_000) < share, impostors, genuine))
    assert 0.1 < mean < 0.1 + 0.75 * 0.06  # at most this much too high: too many pairs are taken for impostors
    assert 0.06 < spread < 1.27 * 0.06


def test_the_pairs_are_those_of_different_clusters_without_copies(make_gallery):
    features = make_gallery(0, num_faces=60, duplicates=10).features
    labels = np.random.default_rng(0).integers(12, size=60)
    pairs = [
        features[i] @ features[j]
        for i in range(60)
        for j in range(60)
        if labels[i] != labels[j] and features[i] @ features[j] < HIGHEST
    ]
    mean, spread = fit_low_quantiles(np.array(pairs))
    impostors = estimate(features, labels)
    assert impostors.mean == pytest.approx(mean, abs=1e-5)
    assert impostors.spread == pytest.approx(max(spread, 8**-0.5), abs=1e-5)


def test_genuine_pairs_of_one_cluster_do_not_count():
    features, labels = gallery([150] * 2 + [1] * 20, 128, noise=0.3)  # a third of the pairs are genuine
    known, unknown = estimate(features, labels), estimate(features)
    assert known.mean < unknown.mean
    impostors = (features @ features.T)[labels[:, None] != labels]
    assert abs(known.mean - np.median(impostors)) < 0.06


@pytest.mark.parametrize("labels", [np.arange(60), np.zeros(60, dtype=np.int64)])
def test_no_face_is_compared_with_itself(labels):
    assert estimate(np.eye(60, dtype=np.float32), labels).mean == 0


def test_no_threshold_separates_copies():
    features, _ = gallery([1] * 100, 16, noise=0)
    assert estimate(features).similarity(1e-9) <= HIGHEST
    assert Impostors(0.0, 0.25, 0.0, 0.25, 100, np.empty((0, 3))).similarity(1e-9) == HIGHEST


@pytest.mark.parametrize("features", [np.eye(5, 16), np.eye(1, 16), np.eye(1, 16)[[0] * 12]])
def test_few_faces_and_copies_get_the_distribution_of_random_directions(features):
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0]  # no column is zero
    impostors = estimate((features @ rotation).astype(np.float32))
    assert impostors.mean == pytest.approx(0, abs=1e-6)
    assert impostors.spread == 1 / 4


@pytest.mark.parametrize("dim", [2, 6, 12, 24])
def test_the_official_threshold_is_the_limit_in_few_dimensions(dim):
    features, _ = gallery([10] * 200, dim, noise=0.8)
    graph = build_knn(features, 8)
    impostors = Impostors.of(features, np.arange(2000), graph.similarities)
    no_limit = replace(impostors, nearest=np.empty((0, 3), dtype=np.float32))
    # Hardly any genuine pair is as similar as the normal tail reaches.
    assert no_limit.similarity(0.003) >= min(HIGHEST, np.quantile(graph.similarities[:, 1], 0.99))
    official = official_similarity_threshold(graph.similarities)
    assert impostors.similarity(0.003) == pytest.approx(min(HIGHEST, official))
    assert impostors.similarity(700) == no_limit.similarity(700) < official


@pytest.mark.parametrize("sizes", [[1] * 1000, [1] * 80 + [2] * 10, [1] * 10 + [20] * 50])
def test_there_is_no_limit_where_genuine_pairs_are_more_similar_than_impostors(sizes):
    impostors = estimate(gallery(sizes, dim=128, noise=0.7)[0])
    no_limit = replace(impostors, nearest=np.empty((0, 3), dtype=np.float32))
    assert impostors.similarity(0.003) == no_limit.similarity(0.003)
    assert impostors.similarity(0.003) > impostors.similarity(1) > 0.1


def test_look_alikes_raise_the_similarity_that_impostors_reach():
    """Pairs of different clusters, a tenth of them look-alikes: low quantiles do not see these."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((10, 64))[np.repeat(np.arange(10), 40)]
    features = means + rng.standard_normal((400, 64))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    similarities = -np.sort(-features @ features.T, axis=1)[:, :20]
    groups = Impostors.of(features, np.arange(400), similarities)
    pairs = np.sort((features @ features.T)[~np.eye(400, dtype=bool)])
    assert groups.with_look_alikes(40) > groups.similarity(40)
    reached = groups.with_look_alikes(40)  # a tenth of 400
    assert np.mean(pairs > reached) == pytest.approx(0.1, abs=0.01)
    alike = Impostors.of(features, np.repeat(np.arange(10), 40), similarities)
    assert alike.with_look_alikes(1) == pytest.approx(alike.similarity(1), abs=0.1)


@pytest.mark.parametrize("share", [0.06, 0.08, 0.12, 0.2])
def test_few_impostor_pairs_among_genuine_ones_are_found(share):
    """As in an album of one person and a few others, where the upper quantile of all pairs is of genuine ones."""
    rng, number = np.random.default_rng(0), round(200_000 * share)
    mean, spread = fit_low_quantiles(np.append(rng.normal(0.1, 0.06, number), rng.normal(0.7, 0.1, 200_000 - number)))
    assert 0.1 < mean < 0.1 + 0.75 * 0.06
    assert 0.06 < spread < 1.27 * 0.06
