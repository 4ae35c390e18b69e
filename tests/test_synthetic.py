import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from test_configs import CONF

from lcde.clustering.classical import ThresholdComponents
from lcde.errors import InputError
from lcde.metrics import Contingency, pairwise


def benchmark(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("train", [*overrides]).dataset)


@pytest.fixture(scope="module")
def parts():
    train, evaluation = benchmark().load(train=True)
    return [train, *evaluation]


def test_parts_are_made_alike_every_time(parts):
    again = benchmark().load(train=False)[1]
    for part, other in zip(parts[1:], again, strict=True):
        assert np.array_equal(part.features, other.features)
        assert np.array_equal(part.labels_true, other.labels_true)


def test_sizes_are_heavy_tailed_and_part_2_is_three_times_part_1(parts):
    assert 2.5 < len(parts[2]) / len(parts[1]) < 3.5
    for part in parts:
        sizes = np.bincount(part.labels_true)
        assert sizes.max() > 100
        assert np.median(sizes) <= 3
        assert (sizes == 1).sum() > 0.2 * len(sizes)


def test_best_single_threshold_gives_80_to_90_pairwise_f(parts):
    components = ThresholdComponents(None)
    for part in parts:
        scores = []
        for threshold in np.arange(0.5, 0.9, 0.02):
            labels = components(part.indices, part.similarities, threshold)
            scores.append(pairwise(Contingency.of(part.labels_true, labels)).f_score)
        assert 0.80 < max(scores) < 0.90


def test_faces_of_one_identity_differ_most_along_the_nuisance_directions(parts):
    residuals = []
    for part in parts[:2]:
        size = np.bincount(part.labels_true)
        means = np.zeros((len(size), part.features.shape[1]))
        np.add.at(means, part.labels_true, part.features)
        means /= size[:, None]
        rows = size[part.labels_true] > 10
        residuals.append((part.features - means[part.labels_true])[rows])
    directions = np.linalg.svd(residuals[0], full_matrices=False)[2][:9]  # found on one part, they hold on another
    share = (residuals[1] @ directions.T).var(axis=0).sum() / residuals[1].var(axis=0).sum()
    assert share > 0.5


def test_unknown_part_is_named():
    with pytest.raises(InputError, match="part9_test"):
        benchmark("dataset.parts=[part9_test]").load(train=False)
