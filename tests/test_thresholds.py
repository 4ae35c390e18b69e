import numpy as np
import pytest

from lcde.clustering.centroids import CentroidRule
from lcde.clustering.edges import official_similarity_threshold
from lcde.clustering.strangers import Strangers
from lcde.clustering.thresholds import COMPARED, ThresholdRule
from lcde.data.knn import build_knn


@pytest.mark.parametrize("per_face", [None, 0.01])
def test_the_threshold_of_edges_is_fixed_or_official_or_that_of_strangers(make_part, per_face):
    part = make_part(0)
    strangers = Strangers.of(part.features, part.indices)
    by_rule = official_similarity_threshold(part.similarities) if per_face is None else strangers.similarity(per_face)
    for fixed, threshold in [(None, by_rule), (0.25, 0.25), (0.0, 0.0)]:
        assert ThresholdRule(fixed, per_face, None).edges(part.similarities, strangers) == threshold


def test_centroids_merge_by_whitened_strangers_where_raw_ones_are_near():
    raw, whitened = Strangers(0.1, 0.1, 1000), Strangers(0.0, 0.09, 1000)
    assert ThresholdRule(None, 0.01, None).centroids(raw, whitened) is None
    expected = CentroidRule(whitened.similarity(0.02), raw.similarity(COMPARED))
    assert ThresholdRule(None, 0.01, 0.02).centroids(raw, whitened) == expected


def test_a_gallery_of_all_alike_joins_itself():
    features = np.ones((5, 3), dtype=np.float32) / 3**0.5
    indices, similarities = build_knn(features, 3)
    strangers, rule = Strangers.of(features, indices), ThresholdRule(None, 0.003, 0.005)
    assert rule.edges(similarities, strangers) < 1
    assert rule.centroids(strangers, strangers).edge_similarity < 1
