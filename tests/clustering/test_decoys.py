import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcde.clustering.decoys import add_decoys, decoy_threshold
from lcde.clustering.nodes import pool


@pytest.fixture(params=[6, 80])
def clusters(request):
    """Few people, who span few of 48 dimensions, or many; three clusters of four faces each."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3 * request.param), 4)
    features = rng.standard_normal((request.param, 48))[labels // 3] + 0.5 * rng.standard_normal((len(labels), 48))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels


def test_decoys_are_as_alike_within_as_their_clusters(clusters):
    features, labels = clusters
    both, numbers = add_decoys(features, labels, np.random.default_rng(0))
    count = len(labels)
    assert both.shape == (2 * count, 96)
    assert np.array_equal(numbers, np.append(labels, labels + labels.max() + 1))
    np.testing.assert_array_equal(both[:count, :48], features)
    given, decoys = both[:count] @ both[:count].T, both[count:] @ both[count:].T
    same = labels[:, None] == labels
    np.testing.assert_allclose(decoys[same], given[same], atol=1e-4)
    assert abs(decoys - given)[~same].max() > 0.3


def test_decoys_are_to_clusters_what_strangers_are(clusters):
    features, labels = clusters
    both, numbers = add_decoys(features, labels, np.random.default_rng(0))
    directions, number = pool(both, numbers).directions, labels.max() + 1
    identity = np.arange(number) // 3
    strangers = (directions[:number] @ directions[:number].T)[identity[:, None] != identity]
    decoys = (directions[:number] @ directions[number:].T)[~np.eye(number, dtype=bool)]
    assert decoys.std() == pytest.approx(strangers.std(), rel=0.4)
    assert decoys.max() < 0.75  # clusters of one identity are more alike
    assert (directions[:number] @ directions[:number].T)[0, 1] > 0.8


def test_the_generator_decides(clusters):
    first, again, other = (add_decoys(*clusters, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@given(st.integers(1, 3), st.integers(1, 30), st.floats(0, 1), st.integers(0, 99))
def test_above_the_threshold_decoys_are_few(draws, num_clusters, false_merges, seed):
    rng = np.random.default_rng(seed)
    best, of_decoys = rng.random((draws, num_clusters)) ** 0.3, rng.random((draws, num_clusters))
    threshold = decoy_threshold(best, of_decoys, false_merges, 0.1)

    def holds(score):
        return (of_decoys >= score).sum() + 1 <= false_merges * (best >= score).sum()

    scores = [score for score in np.append(best, 0.1) if score >= 0.1 and holds(score)]
    assert threshold == (min(scores) if scores else np.inf)
