import numpy as np
import pytest

from lcde.data.resampled import ResampledGalleries


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), np.arange(40) % 12 + 1)
    return rng.standard_normal((40, 48))[labels] + 0.6 * rng.standard_normal((len(labels), 48)), labels + 7


@pytest.fixture(scope="module")
def galleries(source):
    return [ResampledGalleries([source], 0).draw(number) for number in range(40)]


def test_the_same_number_gives_the_same_gallery_and_another_number_another_one(source, galleries):
    features, labels = ResampledGalleries([source], 0).draw(3)
    assert np.array_equal(features, galleries[3][0])
    assert np.array_equal(labels, galleries[3][1])
    assert not np.array_equal(galleries[3][0][:10], galleries[4][0][:10])


def test_galleries_are_unit_features_with_identities_from_zero(source, galleries):
    for features, labels in galleries:
        assert features.dtype == np.float32
        assert len(features) == len(labels) <= len(source[1])
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
        assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))


def test_regimes_dimensions_and_offsets_vary(galleries):
    largest = [np.bincount(labels).max() for _, labels in galleries]
    assert min(largest) == 1
    assert max(largest) > 5
    assert len({features.shape[1] for features, _ in galleries}) > 5
    offsets = [np.linalg.norm(features.mean(axis=0)) for features, _ in galleries]
    assert min(offsets) < 0.3
    assert max(offsets) > 0.8


def test_identities_stay_more_alike_than_others(galleries):
    for features, labels in galleries:
        centred = features - features.mean(axis=0)
        pairs, (first, second) = centred @ centred.T, np.triu_indices(len(labels), 1)
        same = labels[first] == labels[second]
        if min(same.sum(), (~same).sum()) > 20:
            assert pairs[first, second][same].mean() > pairs[first, second][~same].mean()
