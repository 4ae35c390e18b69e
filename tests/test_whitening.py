import numpy as np
import pytest

from lcde.clustering.whitening import IDENTITIES, SHARE, Whitening
from lcde.data.formats import normalise

LABELS = np.repeat(np.arange(200), np.arange(200) % 7 + 1)


def faces(labels, spread, offset=0.0, dim=16, seed=0):
    """Faces that differ within identities along the first axis alone, and a little along all."""
    rng = np.random.default_rng(seed)
    people = rng.standard_normal((labels.max() + 1, dim)) / dim**0.5
    varied = 0.1 * rng.standard_normal((len(labels), dim)) / dim**0.5
    varied[:, 0] += spread * rng.standard_normal(len(labels))
    return normalise((people[labels] + varied + offset * np.eye(dim)[1]).astype(np.float32), "faces")


def separation(features, labels):
    """How many standard deviations of strangers' similarity friends are above them on average."""
    similarity, same = features @ features.T, labels[:, None] == labels
    strangers, friends = similarity[~same], similarity[same & ~np.eye(len(labels), dtype=bool)]
    return (friends.mean() - strangers.mean()) / strangers.std()


def test_what_varies_within_clusters_counts_less():
    features = faces(LABELS, spread=1.0)
    seen = Whitening.of(features, LABELS)(features)
    assert seen.dtype == np.float32
    assert np.linalg.norm(seen, axis=1) == pytest.approx(1, abs=1e-5)
    assert separation(seen, LABELS) > 1.4 * separation(features, LABELS)


def test_a_direction_that_all_faces_are_drawn_to_is_left_out():
    features = faces(LABELS, spread=0.0, offset=1.0)
    strangers = LABELS[:, None] != LABELS
    seen = Whitening.of(features, LABELS)(features)
    assert (features @ features.T)[strangers].mean() > 0.4
    assert abs((seen @ seen.T)[strangers].mean()) < 0.15


def test_the_mean_is_of_clusters_and_small_for_few():
    features = np.eye(3, dtype=np.float32)[[0, 0, 0, 0, 1]]
    mean = Whitening.of(features, np.array([0, 0, 0, 0, 1])).mean
    assert mean == pytest.approx(np.array([1, 1, 0]) / (2 + IDENTITIES))


def test_the_matrix_whitens_a_mixture_with_equal_noise():
    labels, features = LABELS, faces(LABELS, spread=1.0)
    whitening = Whitening.of(features, labels)
    seen = features.astype(np.float64)
    covariance = np.zeros((16, 16))
    for cluster in range(200):
        own = seen[labels == cluster]
        if len(own) > 1:
            covariance += np.cov(own.T) * len(own) ** 0.5
    mixture = SHARE * covariance / np.trace(covariance) * 16 + (1 - SHARE) * np.eye(16)
    assert whitening.matrix @ mixture @ whitening.matrix == pytest.approx(np.eye(16), abs=1e-4)


@pytest.mark.parametrize("labels", [np.arange(4), np.zeros(4, dtype=np.int64), np.array([0, 0, 3, 3])])
def test_galleries_without_variation_keep_their_similarities(labels):
    features = np.eye(4, 5, dtype=np.float32)[labels]
    seen = Whitening.of(features, labels)(features)
    assert seen @ seen.T == pytest.approx(features @ features.T, abs=0.05)


def test_blocks_make_no_difference(monkeypatch):
    features = faces(LABELS, spread=1.0)
    whitening = Whitening.of(features, LABELS)
    seen = whitening(features)
    monkeypatch.setattr("lcde.clustering.whitening.ROWS", 7)
    assert Whitening.of(features, LABELS).matrix == pytest.approx(whitening.matrix, abs=1e-5)
    assert whitening(features) == pytest.approx(seen, abs=1e-6)


def test_noise_teaches_nothing():
    features = faces(LABELS, spread=1.0)
    noise = np.arange(len(LABELS)) % 3 == 0
    expected = Whitening.of(features[~noise], LABELS[~noise])
    found = Whitening.of(features, np.where(noise, -1, LABELS))
    assert found.mean == pytest.approx(expected.mean, abs=1e-6)
    assert found.matrix == pytest.approx(expected.matrix, abs=1e-5)
    nothing = Whitening.of(features, np.full(len(features), -1))
    assert nothing(features) == pytest.approx(features, abs=1e-6)
    assert not Whitening.of(features[:0], LABELS[:0]).mean.any()


def test_a_face_at_the_mean_is_no_face():
    half = np.full((1, 4), 0.5, dtype=np.float32)
    assert not Whitening(half[0], np.eye(4, dtype=np.float32))(half).any()
