"""Scores kept by content: computed once, right after changes, kills and among several jobs."""

import numpy as np
import pytest
import torch
from torch import nn

from lcde.models.base import PairModel, PairNetworks
from lcde.models.score_cache import CachedScores, fingerprint
from lcde.models.scoring import GraphScorer

EDGES = np.array([[0, 3], [5, 1], [2, 7], [39, 8]])


class Toy(PairModel):
    """Scores from one linear layer of random weights."""

    def __init__(self, feature_dim=8, k=6, power=1, seed=0):
        super().__init__(feature_dim, k)
        torch.manual_seed(seed)
        self.layer, self.power = nn.Linear(feature_dim, 1), power

    def losses(self, batch, training):
        return {}

    def networks(self, dtype):
        return PairNetworks(
            lambda features: self.layer(features)[..., 0].sigmoid() ** self.power,
            lambda features, _: self.layer(features).mean(1)[:, 0].sigmoid() ** self.power,
        )


class OtherToy(Toy):
    pass


class Counting(GraphScorer):
    """Counts what is asked of the networks."""

    asked = 0

    def _score_share(self, what, items):
        self.asked += len(items)
        return super()._score_share(what, items)


def counting(gallery):
    return Counting(Toy().networks(torch.float32), gallery, torch.device("cpu"))


@pytest.fixture
def scorer(make_gallery):
    return counting(make_gallery(0))


def test_scores_are_those_of_the_networks_and_computed_once(scorer, tmp_path):
    expected = scorer.connectivity(), scorer.edge_probability(EDGES)
    for asked in (40 + len(EDGES), 0):
        scorer.asked = 0
        cached = CachedScores(lambda: scorer, tmp_path, "key")
        np.testing.assert_array_equal(cached.connectivity(), expected[0])
        np.testing.assert_allclose(cached.edge_probability(EDGES[:2]), expected[1][:2], atol=1e-6)
        np.testing.assert_allclose(cached.edge_probability(EDGES[::-1]), expected[1][::-1], atol=1e-6)
        assert scorer.asked == asked
    assert len(cached.edge_probability(EDGES[:0])) == 0


def test_everything_that_changes_a_score_changes_the_key(make_gallery):
    gallery, other = make_gallery(0), make_gallery(1)
    variants = [
        (Toy(), gallery, torch.float32),
        (Toy(), gallery, torch.bfloat16),
        (OtherToy(), gallery, torch.float32),
        (Toy(seed=1), gallery, torch.float32),
        (Toy(power=2), gallery, torch.float32),
        (Toy(), type(gallery)("test", other.features, gallery.graph), torch.float32),
        (Toy(), type(gallery)("test", gallery.features, other.graph), torch.float32),
    ]
    assert len({fingerprint(*variant) for variant in variants}) == len(variants)
    same = type(gallery)("another name", gallery.features.copy(), gallery.graph)
    assert fingerprint(Toy(), same, torch.float32) == fingerprint(*variants[0])
    retrained = Toy()
    nn.init.zeros_(retrained.layer.bias)
    assert fingerprint(retrained, gallery, torch.float32) != fingerprint(*variants[0])


def test_damaged_files_are_made_anew(scorer, tmp_path):
    cached = CachedScores(lambda: scorer, tmp_path, "key")
    expected = cached.connectivity(), cached.edge_probability(EDGES)
    for file in (cached.connectivity_file, cached.edges_file):
        file.write_bytes(file.read_bytes()[:50])
    again = CachedScores(lambda: scorer, tmp_path, "key")
    np.testing.assert_array_equal(again.connectivity(), expected[0])
    np.testing.assert_array_equal(again.edge_probability(EDGES), expected[1])


def score(gallery, folder, edges):
    torch.set_num_threads(1)
    scorer = counting(gallery)
    cached = CachedScores(lambda: scorer, folder, "key")
    return cached.connectivity().sum(), cached.edge_probability(edges), scorer.asked


@pytest.mark.slow
def test_concurrent_jobs_compute_once_and_lose_nothing(processes, scorer, make_gallery, tmp_path):
    gallery = make_gallery(0)
    with processes.Pool(2) as pool:
        done = pool.starmap(score, [(gallery, tmp_path, EDGES[:3]), (gallery, tmp_path, EDGES[1:])])
    assert sum(asked for *_, asked in done) == 40 + len(EDGES)
    assert len({total for total, *_ in done}) == 1
    CachedScores(lambda: scorer, tmp_path, "key").edge_probability(EDGES)
    assert scorer.asked == 0
