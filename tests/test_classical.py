import numpy as np
import pytest

from lcde.clustering.classical import Infomap, ThresholdComponents, choose_threshold
from lcde.data.formats import normalise
from lcde.data.knn import build_knn
from lcde.data.part import Part


@pytest.fixture
def part():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 10)
    faces = rng.standard_normal((12, 16))[labels] + 0.3 * rng.standard_normal((120, 16))
    features = normalise(faces.astype(np.float32), "faces")
    return Part("test", features, *build_knn(features, 8), labels)


@pytest.mark.parametrize("method", [ThresholdComponents(None), Infomap(None, num_trials=1, seed=0)])
def test_well_separated_identities_are_found(method, part):
    threshold = choose_threshold(method, part.indices, part.similarities, part.labels_true)
    labels = method(part.indices, part.similarities, threshold)
    assert labels.dtype == np.int64
    assert np.array_equal(np.unique(labels), np.arange(12))
    assert len(set(zip(labels, part.labels_true, strict=True))) == 12


@pytest.mark.parametrize("method", [ThresholdComponents(None), Infomap(None, num_trials=1, seed=0)])
def test_no_edge_means_singletons(method, part):
    assert np.array_equal(np.sort(method(part.indices, part.similarities, 2.0)), np.arange(len(part)))


def test_components_join_at_exactly_the_threshold():
    indices = np.array([[0, 1], [1, 0], [2, 1]], dtype=np.int32)
    similarities = np.array([[1, 0.5], [1, 0.5], [1, 0.25]], dtype=np.float32)
    assert ThresholdComponents(None)(indices, similarities, 0.5).tolist() == [0, 0, 1]
    assert ThresholdComponents(None)(indices, similarities, 0.25).tolist() == [0, 0, 0]
