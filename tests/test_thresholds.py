import numpy as np
import pytest

from lcde.clustering.centroids import CentroidRule
from lcde.clustering.edges import official_similarity_threshold
from lcde.clustering.strangers import Strangers
from lcde.clustering.thresholds import ThresholdRule


@pytest.mark.parametrize("per_face", [None, 0.01])
@pytest.mark.parametrize("per_centroid", [None, 0.02])
def test_thresholds_are_fixed_or_official_or_those_of_strangers(make_part, per_face, per_centroid):
    part = make_part(0)
    strangers = Strangers.of(part.features, part.similarities)
    by_rule = official_similarity_threshold(part.similarities) if per_face is None else strangers.similarity(per_face)
    centroids = None if per_centroid is None else CentroidRule.of(strangers, per_centroid)
    for fixed, threshold in [(None, by_rule), (0.25, 0.25), (0.0, 0.0)]:
        assert ThresholdRule(fixed, per_face, per_centroid).of(part.features, part.similarities) == (
            pytest.approx(threshold),
            centroids,
        )


def test_a_gallery_of_all_alike_joins_itself():
    alike = np.ones((5, 3), dtype=np.float32)
    threshold, rule = ThresholdRule(None, 0.003, 0.005).of(alike / 3**0.5, alike)
    assert threshold <= 1
    assert rule.edge_similarity <= 1
