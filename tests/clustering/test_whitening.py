import numpy as np
import pytest

from lcde.clustering.transformed import Transformed
from lcde.clustering.whitening import SHARE, cluster_sums, common_offset, within_cluster_whitening
from lcde.data.formats import normalise

LABELS = np.repeat(np.arange(200), np.arange(200) % 7 + 1)
NO_OFFSET = np.zeros(16, dtype=np.float32)


def faces(labels, spread, offset=0.0, dim=16, seed=0):
    """Faces that differ within identities along the first axis alone, and a little along all."""
    rng = np.random.default_rng(seed)
    people = rng.standard_normal((labels.max() + 1, dim)) / dim**0.5
    varied = 0.1 * rng.standard_normal((len(labels), dim)) / dim**0.5
    varied[:, 0] += spread * rng.standard_normal(len(labels))
    return normalise((people[labels] + varied + offset * np.eye(dim)[1]).astype(np.float32), "faces")


def separation(features, labels):
    """Mean similarity of genuine pairs above that of impostor pairs, in standard deviations of the latter."""
    similarity, same = features @ features.T, labels[:, None] == labels
    impostors, genuine = similarity[~same], similarity[same & ~np.eye(len(labels), dtype=bool)]
    return (genuine.mean() - impostors.mean()) / impostors.std()


def test_what_varies_within_clusters_counts_less():
    features = faces(LABELS, spread=1.0)
    whitened = Transformed(features, NO_OFFSET, within_cluster_whitening(features, LABELS))[:]
    assert whitened.dtype == np.float32
    assert np.linalg.norm(whitened, axis=1) == pytest.approx(1, abs=1e-5)
    assert separation(whitened, LABELS) > 1.4 * separation(features, LABELS)


@pytest.mark.parametrize("count", [3, 10, 400])
def test_a_planted_offset_is_found(count):
    """Of few identities, too, whose mean is mostly their own."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(count), np.arange(count) % 7 + 1)
    own, planted = rng.standard_normal((count, 512)) / 512**0.5, np.eye(512)[0]
    features = normalise((own + planted)[labels].astype(np.float32), "faces")
    similarities = features @ features.T
    impostor_mean = float(similarities[labels[:, None] != labels].mean())
    assert impostor_mean == pytest.approx(0.5, abs=0.05)
    offset = common_offset(features, labels, impostor_mean)
    assert offset.dtype == np.float32
    assert np.linalg.norm(offset) == pytest.approx(impostor_mean**0.5, abs=1e-3)
    assert np.linalg.norm(offset - planted * 0.5**0.5) < 0.45
    if count == 400:
        moved = Transformed(features, offset, np.eye(512, dtype=np.float32))[:]
        assert abs((moved @ moved.T)[labels[:, None] != labels].mean()) < 0.02


def test_the_offset_lies_along_the_mean_of_centroids_and_is_no_longer():
    features, labels = np.eye(3, dtype=np.float32)[[0, 0, 0, 0, 1, 2]], np.array([0, 0, 0, 0, 1, -1])
    assert common_offset(features, labels, 0.25) == pytest.approx(np.array([1, 1, 0]) * 0.5 / 2**0.5)
    assert common_offset(features, labels, 0.9) == pytest.approx(np.array([1, 1, 0]) / 2)
    assert not common_offset(features, labels, -0.1).any()


def test_the_matrix_whitens_a_mixture_with_equal_noise():
    features = faces(LABELS, spread=1.0)
    matrix, exact = within_cluster_whitening(features, LABELS), features.astype(np.float64)
    covariance = np.zeros((16, 16))
    for cluster in range(200):
        own = exact[cluster == LABELS]
        if len(own) > 1:
            covariance += np.cov(own.T) * len(own) ** 0.5
    mixture = SHARE * covariance / np.trace(covariance) * 16 + (1 - SHARE) * np.eye(16)
    assert matrix @ mixture @ matrix == pytest.approx(np.eye(16), abs=1e-4)


@pytest.mark.parametrize("labels", [np.arange(4), np.zeros(4, dtype=np.int64), np.array([0, 0, 3, 3])])
def test_without_variation_within_clusters_the_matrix_is_the_unit_matrix(labels):
    features = np.eye(4, 5, dtype=np.float32)[labels]
    assert np.array_equal(within_cluster_whitening(features, labels), np.eye(5))


def test_faces_are_moved_and_scaled():
    rng = np.random.default_rng(0)
    features, offset, matrix = (rng.standard_normal(shape).astype(np.float32) for shape in ((9, 4), 4, (4, 4)))
    expected = (features - offset) @ matrix
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    moved, indices = Transformed(features, offset, matrix), np.stack([np.arange(9), rng.permutation(9)], axis=1)
    assert moved[:] == pytest.approx(expected, abs=1e-5)
    assert moved[indices[:, 1]] == pytest.approx(expected[indices[:, 1]], abs=1e-5)
    similarities = (expected[indices] * expected[:, None]).sum(axis=2)
    assert moved.similarities(indices) == pytest.approx(similarities, abs=1e-5)
    features[3] = offset
    at_offset = Transformed(features, offset, matrix)
    assert not at_offset[3:4].any()
    assert not at_offset.similarities(indices)[(indices == 3).any(axis=1) & (indices[:, 1] == 3)][:, 1].any()


def test_whitening_does_not_depend_on_block_size(monkeypatch):
    features = faces(LABELS, spread=1.0)
    matrix = within_cluster_whitening(features, LABELS)
    sums = cluster_sums(features, LABELS)
    monkeypatch.setattr("lcde.data.gallery.ROWS", 7)
    assert within_cluster_whitening(features, LABELS) == pytest.approx(matrix, abs=1e-5)
    assert cluster_sums(features, LABELS) == pytest.approx(sums, abs=1e-5)


def test_noise_does_not_count():
    features = faces(LABELS, spread=1.0)
    noise = np.arange(len(LABELS)) % 3 == 0
    clean, labels = (features[~noise], LABELS[~noise]), np.where(noise, -1, LABELS)
    assert common_offset(features, labels, 0.1) == pytest.approx(common_offset(*clean, 0.1), abs=1e-6)
    assert within_cluster_whitening(features, labels) == pytest.approx(within_cluster_whitening(*clean), abs=1e-5)
    for count in (len(features), 0):
        nothing = features[:count], np.full(count, -1)
        assert not common_offset(*nothing, 0.5).any()
        assert np.array_equal(within_cluster_whitening(*nothing), np.eye(16))


def test_sums_are_those_of_each_cluster():
    features = faces(LABELS, spread=1.0)
    sums = np.stack([features[cluster == LABELS].sum(axis=0) for cluster in range(200)])
    assert cluster_sums(features, LABELS) == pytest.approx(sums, abs=1e-5)
