"""Network outputs kept by content: asked for once, right after changes, kills and among several jobs."""

import multiprocessing

import numpy as np
import pytest
import torch

from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet
from lcde.models.score_cache import CachedScores, fingerprint
from lcde.models.scoring import GraphScorer

EDGES = np.array([[0, 3], [5, 1], [2, 7], [39, 8]])


def networks(seed=0, nhead=2):
    torch.manual_seed(seed)
    return tuple(network(8, 6, 1, nhead, 16, 0.0) for network in (LCENet, PCENet))


class Counting(GraphScorer):
    """Counts what is asked of the networks."""

    asked = 0

    def _score_share(self, what, items):
        self.asked += len(items)
        return super()._score_share(what, items)


@pytest.fixture
def scorer(make_part):
    part = make_part(0)
    return Counting(*networks(), part.features, part.indices)


def test_answers_are_those_of_the_networks_and_asked_for_once(scorer, make_part, tmp_path):
    expected = scorer.connectivity(), scorer.edge_probability(EDGES)
    for asked in (40 + len(EDGES), 0):
        scorer.asked = 0
        cached = CachedScores(scorer, tmp_path)
        np.testing.assert_array_equal(cached.connectivity(), expected[0])
        np.testing.assert_allclose(cached.edge_probability(EDGES[:2]), expected[1][:2], atol=1e-6)
        np.testing.assert_allclose(cached.edge_probability(EDGES[::-1]), expected[1][::-1], atol=1e-6)
        assert scorer.asked == asked
    assert len(cached.edge_probability(EDGES[:0])) == 0


def test_everything_that_changes_an_answer_changes_the_file(make_part, tmp_path):
    part, other = make_part(0), make_part(1)
    scorers = [
        GraphScorer(*networks(), part.features, part.indices),
        GraphScorer(*networks(seed=1), part.features, part.indices),
        GraphScorer(*networks(nhead=1), part.features, part.indices),
        GraphScorer(*networks(), other.features, part.indices),
        GraphScorer(*networks(), part.features, other.indices),
        GraphScorer(*networks(), part.features, part.indices[:, ::-1].copy()),
    ]
    lower = GraphScorer(*(network.bfloat16() for network in networks()), part.features, part.indices)
    assert len({fingerprint(scorer) for scorer in [*scorers, lower]}) == 7
    assert fingerprint(GraphScorer(*networks(), part.features, part.indices)) == fingerprint(scorers[0])


def test_damaged_files_are_made_anew(scorer, tmp_path):
    cached = CachedScores(scorer, tmp_path)
    expected = cached.connectivity(), cached.edge_probability(EDGES)
    for file in (cached.connectivity_file, cached.edges_file):
        file.write_bytes(file.read_bytes()[:50])
    again = CachedScores(scorer, tmp_path)
    np.testing.assert_array_equal(again.connectivity(), expected[0])
    np.testing.assert_array_equal(again.edge_probability(EDGES), expected[1])


def score(part, folder, edges):
    torch.set_num_threads(1)
    scorer = Counting(*networks(), part.features, part.indices)
    cached = CachedScores(scorer, folder)
    return scorer.asked, cached.connectivity().sum(), cached.edge_probability(edges), scorer.asked


def test_concurrent_jobs_compute_once_and_lose_nothing(make_part, tmp_path):
    part = make_part(0)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        done = pool.starmap(score, [(part, tmp_path, EDGES[:3]), (part, tmp_path, EDGES[1:]), (part, tmp_path, EDGES)])
    assert sum(asked for *_, asked in done) == 40 + len(EDGES)
    assert len({total for _, total, *_ in done}) == 1
    scorer = Counting(*networks(), part.features, part.indices)
    CachedScores(scorer, tmp_path).edge_probability(EDGES)
    assert scorer.asked == 0
