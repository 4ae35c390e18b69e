from dataclasses import replace

import numpy as np
import pytest

from lcde.clustering.edges import official_similarity_threshold
from lcde.clustering.strangers import SAME, Strangers
from lcde.data.formats import normalise
from lcde.data.knn import build_knn


def test_as_many_strangers_as_expected_reach_a_similarity():
    features = normalise(np.random.default_rng(0).standard_normal((3000, 256)).astype(np.float32), "strangers")
    similarities = features @ features.T
    np.fill_diagonal(similarities, -1)
    strangers = Strangers.of(features, build_knn(features, 4)[0])
    for per_face in (0.1, 1, 10):
        reached = (similarities >= strangers.similarity(per_face)).sum() / 3000
        assert 0.7 * per_face < reached < 1.3 * per_face
    assert strangers.similarity(1500) == strangers.similarity(3000) == strangers.mean


def test_a_sample_of_a_large_gallery_tells_the_same():
    features = normalise(np.random.default_rng(0).standard_normal((11_000, 256)).astype(np.float32), "strangers")
    strangers = Strangers.of(features, np.tile(np.arange(4, dtype=np.int32), (11_000, 1)))
    assert strangers.num_faces == 11_000
    assert abs(strangers.mean) < 0.002
    assert abs(strangers.spread - 1 / 16) < 0.002


def test_friends_hardly_move_it():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(300), 10)
    people = rng.standard_normal((300, 256))
    crowd = normalise((people[labels] + 0.5 * rng.standard_normal((3000, 256))).astype(np.float32), "crowd")
    strangers = Strangers.of(crowd, build_knn(crowd, 4)[0])
    assert abs(strangers.mean) < 0.002
    assert abs(strangers.spread - 1 / 16) < 0.002


@pytest.mark.parametrize("sample", [30, 50])
def test_no_face_of_a_sample_is_compared_with_itself(sample, monkeypatch):
    features = np.eye(60, dtype=np.float32)
    indices = np.tile(np.arange(4, dtype=np.int32), (60, 1))
    monkeypatch.setattr("lcde.clustering.strangers.SAMPLE", sample)
    compared = []
    monkeypatch.setattr(np, "quantile", lambda values, _: compared.append(values) or (0.0, 0.0))
    Strangers.of(features, indices)
    assert compared[0].size > 0
    assert not compared[0].any()


def test_no_threshold_keeps_copies_apart():
    features = normalise(np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32), "faces")
    assert Strangers.of(features, build_knn(features, 4)[0]).similarity(1e-9) <= SAME
    assert Strangers(0.0, 0.25, 100).similarity(1e-9) == SAME


def test_a_handful_is_spread_as_the_many_are():
    features = np.eye(5, 16, dtype=np.float32)
    strangers = Strangers.of(features, build_knn(features, 4)[0])
    assert (strangers.mean, strangers.spread) == (0, 1 / 4)


def test_one_face_has_no_strangers():
    one = np.eye(1, 4, dtype=np.float32)
    assert Strangers.of(one, np.zeros((1, 1), dtype=np.int32)).similarity(0.1) == SAME


def gallery(sizes, dim, noise):
    """People of so many faces each, in a space of so many dimensions."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    people = normalise(rng.standard_normal((len(sizes), dim)).astype(np.float32), "people")
    noise = noise * rng.standard_normal((len(labels), dim)).astype(np.float32) / dim**0.5
    return normalise(people[labels] + noise, "gallery")


@pytest.mark.parametrize("dim", [6, 12, 24])
def test_the_official_threshold_is_the_limit_where_faces_crowd(dim):
    features = gallery([10] * 300, dim, noise=0.8)
    indices, similarities = build_knn(features, 8)
    strangers = Strangers.of(features, indices)
    no_limit = replace(strangers, limit=np.inf)
    assert no_limit.similarity(0.003) > np.quantile(similarities[:, 1], 0.99)  # hardly any friends are as alike
    assert strangers.similarity(0.003) == strangers.limit == pytest.approx(official_similarity_threshold(similarities))
    assert strangers.similarity(1000) < strangers.limit


@pytest.mark.parametrize("sizes", [[1] * 1000, [1] * 80 + [2] * 10, [1] * 10 + [20] * 50])
def test_there_is_no_limit_where_friends_are_more_alike_than_strangers(sizes):
    features = gallery(sizes, dim=128, noise=0.7)
    strangers = Strangers.of(features, build_knn(features, 8)[0])
    assert strangers.limit == SAME
    assert strangers.similarity(0.003) > strangers.similarity(1) > 0.1
