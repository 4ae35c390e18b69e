import numpy as np

from lcde.clustering.strangers import Strangers
from lcde.data.formats import normalise


def test_as_many_strangers_as_expected_reach_a_similarity():
    features = normalise(np.random.default_rng(0).standard_normal((3000, 256)).astype(np.float32), "strangers")
    similarities = features @ features.T
    np.fill_diagonal(similarities, -1)
    strangers = Strangers.of(features)
    for per_face in (0.1, 1, 10):
        reached = (similarities >= strangers.similarity(per_face)).sum() / 3000
        assert 0.7 * per_face < reached < 1.3 * per_face
    assert strangers.similarity(1500) == strangers.similarity(3000) == strangers.mean


def test_friends_hardly_move_it():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(300), 10)
    people = rng.standard_normal((300, 256))
    crowd = normalise((people[labels] + 0.5 * rng.standard_normal((3000, 256))).astype(np.float32), "crowd")
    strangers = Strangers.of(crowd)
    assert abs(strangers.mean) < 0.002
    assert abs(strangers.spread - 1 / 16) < 0.002


def test_one_face_has_no_strangers():
    assert Strangers.of(np.eye(1, 4, dtype=np.float32)).similarity(0.1) == 1
