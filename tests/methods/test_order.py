"""Another order of the faces gives the same clusters, where a rule does not search at random."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.perturbed import reordered
from lcde.configuration import build, compose_config
from lcde.methods.method import Method
from lcde.models.lcde import LCDEModel


@pytest.fixture(scope="module")
def model():
    """Untrained networks whose weights differ enough for scores that do."""
    torch.manual_seed(0)
    model = LCDEModel(16, 8, 1, 4, 24, 0.1, 8, 1.0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("name", ["components", "hac", "cdp", "dbscan", "exact"])
@pytest.mark.parametrize("seed", range(3))
def test_another_order_of_the_faces_gives_the_same_clusters(name, seed, make_gallery, model):
    gallery = make_gallery(seed, num_faces=200, feature_dim=16, k=8)
    config = compose_config("eval", [f"clustering={name}"]).clustering
    rule = build({**config, "threshold": 0.7} if "threshold" in config else config)
    method = Method(name, rule, model if rule.needs_scores else None)
    moved = reordered(replace(gallery, labels_true=np.arange(200)), np.random.default_rng(seed))
    before, after = method.cluster(gallery).labels[moved.labels_true], method.cluster(moved).labels
    assert 5 < len(np.unique(before)) < 195
    assert np.array_equal(before[:, None] == before, after[:, None] == after)
