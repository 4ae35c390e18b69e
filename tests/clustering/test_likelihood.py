import numpy as np
import pytest
from scipy.stats import multivariate_normal

from lcde.clustering.likelihood import BETWEEN_SHARE, NOISE, WITHIN_SHARE, TwoCovariance
from lcde.clustering.merging import Merging
from lcde.clustering.whitening import centroids_of, within_cluster_covariance
from lcde.data.gallery import KNNGraph
from lcde.data.knn import build_knn

DIM = 6
SPREADS = np.array([0.3, 0.3, 1.0, 0.3, 0.3, 2.0], dtype=np.float32)  # of the faces of a person, by direction


def draw(sizes, dim=DIM, spreads=SPREADS, seed=0):
    """Faces (N, dim) of people with ``sizes`` photographs, not of unit length, and identities (N,)."""
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(len(sizes)), sizes)
    people = 2 + rng.standard_normal((len(sizes), dim))
    return (people[labels] + spreads * rng.standard_normal((len(labels), dim))).astype(np.float32), labels


def sums_of(features, labels):
    sizes = np.bincount(labels)
    sums = np.zeros((len(sizes), features.shape[1]), dtype=np.float32)
    np.add.at(sums, labels, features)
    return sums, sizes


def test_the_evidence_is_that_of_normal_distributions():
    """The ratio of one identity and two, by the joint density of all faces."""
    features, labels = draw([4, 3, 5, 6, 2, 1, 1])
    model = TwoCovariance.of(features, labels)
    moved = (features - model.mean) @ model.matrix

    def density(faces):
        """All dimensions are independent: faces of one identity share the variance of its mean."""
        total = 0.0
        for values, variance in zip(faces.T.astype(np.float64), model.variances, strict=True):
            covariance = np.eye(len(values)) + variance
            total += multivariate_normal(np.zeros(len(values)), covariance).logpdf(values)
        return total

    sums, sizes = sums_of(features, labels)
    sums = model.moved(sums, sizes)
    evidence = model.evidence(sums, sizes)
    for first, second in [(0, 1), (2, 5), (5, 6), (3, 4)]:
        together = model.evidence(sums[[first]] + sums[[second]], sizes[[first]] + sizes[[second]])[0]
        ratio = together - evidence[first] - evidence[second]
        one, other = moved[labels == first], moved[labels == second]
        expected = density(np.concatenate([one, other])) - density(one) - density(other)
        assert ratio == pytest.approx(expected, abs=1e-3)


def test_covariances_are_those_of_faces_and_of_identities():
    """With many people of many photographs: what was drawn, but for the shares of the unit matrix and the noise."""
    features, labels = draw([30] * 3000)
    model = TwoCovariance.of(features, labels)
    drawn = np.diag(SPREADS.astype(np.float64) ** 2)
    assert within_cluster_covariance(features, labels, *centroids_of(features, labels)) == pytest.approx(
        drawn, abs=0.03
    )
    unit = np.eye(DIM)
    within = NOISE * ((1 - WITHIN_SHARE) * drawn + WITHIN_SHARE * np.trace(drawn) / DIM * unit)
    assert model.matrix.T @ within @ model.matrix == pytest.approx(unit, abs=0.05)
    of_people = 1 / np.diag(within)  # the unit matrix, transformed; the axes are those of the directions
    shrunk = (1 - BETWEEN_SHARE) * of_people + BETWEEN_SHARE * of_people.mean()
    assert np.sort(model.variances) == pytest.approx(np.sort(shrunk), rel=0.05)
    assert model.mean == pytest.approx(np.full(DIM, 2), abs=0.1)


def test_the_covariance_of_small_clusters_has_no_bias():
    features, labels = draw([2] * 20_000)
    assert within_cluster_covariance(features, labels, *centroids_of(features, labels)) == pytest.approx(
        np.diag(SPREADS**2), abs=0.06
    )


def test_there_is_no_model_without_photographs_that_differ_less_than_people():
    features, labels = draw([1] * 30)
    assert TwoCovariance.of(features, labels) is None
    assert TwoCovariance.of(np.ones((6, 3), dtype=np.float32), np.array([0, 0, 0, 1, 1, 1])) is None
    features, labels = draw([5] * 40)
    at_random = np.random.default_rng(1).permutation(labels)
    assert TwoCovariance.of(features - features.mean(axis=0), at_random) is None
    assert TwoCovariance.of(features, np.full(len(features), -1)) is None


def test_directions_without_variance_change_no_ratio():
    """As those of embeddings with columns of zeros; rotated, so that no column is zero."""
    features, labels = draw([4, 3, 5, 6, 2, 1, 1])
    padded = np.concatenate([features, np.zeros((len(features), 20), dtype=np.float32)], axis=1)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((26, 26)))[0].astype(np.float32)
    found = []
    for given in (features, padded, padded @ rotation):
        model, (sums, sizes) = TwoCovariance.of(given, labels), sums_of(given, labels)
        found.append(model.evidence(model.moved(sums, sizes), sizes))
    assert found[1] == pytest.approx(found[0], abs=1e-3)
    assert found[2] == pytest.approx(found[0], abs=1e-3)


def test_noise_and_numbers_without_faces_change_no_model():
    features, labels = draw([4, 3, 5, 6])
    noisy, given = np.concatenate([features, features + 1]), np.concatenate([2 * labels, np.full(len(labels), -1)])
    model, other = TwoCovariance.of(features, labels), TwoCovariance.of(noisy, given)
    assert other.mean == pytest.approx(model.mean, abs=1e-5)
    assert other.variances == pytest.approx(model.variances, rel=1e-4)
    assert abs(other.matrix) == pytest.approx(abs(model.matrix), abs=1e-3)


def merged(features, parts, expected_merges=1.0, num_known=0):
    graph = build_knn(features / np.linalg.norm(features, axis=1, keepdims=True), min(60, len(features)))
    merging = Merging(parts, features, KNNGraph(graph.indices, graph.similarities), -1.0, num_known)
    merging.by_likelihood(TwoCovariance.of(features, parts), expected_merges)
    return merging.labels


@pytest.fixture(scope="module")
def people():
    """Eighty people whose photographs differ most along two of 32 directions, and parts of two to four faces."""
    spreads = np.full(32, 0.4, dtype=np.float32)
    spreads[:2] = 4
    features, labels = draw([9] * 80, 32, spreads)
    return features, labels, np.unique(3 * labels + np.arange(len(labels)) % 3, return_inverse=True)[1]


def test_parts_of_people_merge_and_people_do_not(people):
    features, labels, parts = people
    found = merged(features, parts)
    assert len(np.unique(found)) < 85
    assert all(len(np.unique(labels[found == cluster])) == 1 for cluster in np.unique(found))
    assert len(np.unique(merged(features, labels))) == 80


def test_fewer_expected_merges_are_stricter(people):
    features, _, parts = people
    numbers = [len(np.unique(merged(features, parts, expected))) for expected in (1e-12, 1e-6, 1)]
    assert 240 >= numbers[0] > numbers[1] > numbers[2]


def test_known_clusters_stay_apart_and_keep_their_numbers(people):
    features, labels, parts = people
    order = np.argsort(parts % 3 == 2, kind="stable")  # the third part of each person comes last
    known = int((parts % 3 != 2).sum())
    given = np.unique(parts[order], return_inverse=True)[1]
    renumbered = np.concatenate([np.unique(given[:known], return_inverse=True)[1], 160 + np.arange(len(given) - known)])
    found = merged(features[order], renumbered, num_known=known)
    assert np.array_equal(found[:known], renumbered[:known])
    joined = found[known:] < 160
    assert joined.mean() > 0.9
    person = np.empty(160, dtype=np.int64)
    person[renumbered[:known]] = labels[order][:known]
    assert np.array_equal(person[found[known:][joined]], labels[order][known:][joined])
