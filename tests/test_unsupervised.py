import numpy as np
import pytest

from lcde.clustering.centroids import CentroidRule
from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import edge_similarities
from lcde.clustering.strangers import Strangers
from lcde.clustering.thresholds import COMPARED
from lcde.clustering.unsupervised import Unsupervised
from lcde.clustering.whitening import Whitening
from lcde.data.datasets import MS1M
from lcde.data.formats import normalise
from lcde.data.knn import build_knn
from lcde.evaluation import evaluate_unsupervised
from lcde.metrics import Contingency, bcubed


@pytest.fixture
def method():
    return Unsupervised(strangers_per_face=0.0005, strangers_per_centroid=0.002, num_trials=10, seed=0)


def test_identities_of_one_and_of_many_faces_are_found(method):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(150), [*([1] * 100), *([10] * 49), 300])
    faces = rng.standard_normal((150, 64))[labels] + 0.5 * rng.standard_normal((len(labels), 64))
    features = normalise(faces.astype(np.float32), "faces")
    clustered = method(features, *build_knn(features, 20))
    assert len(set(zip(clustered.labels, labels, strict=True))) <= 153
    assert abs(len(np.unique(clustered.labels)) - 150) <= 3


def test_a_small_gallery_of_mostly_strangers_falls_into_its_few_friends(method):
    labels = np.repeat(np.arange(90), [1] * 80 + [2] * 10)
    rng = np.random.default_rng(0)
    faces = rng.standard_normal((90, 128))[labels] + 0.5 * rng.standard_normal((100, 128))
    features = normalise(faces.astype(np.float32), "faces")
    found = method(features, *build_knn(features, 20)).labels
    assert np.array_equal(found[:, None] == found, labels[:, None] == labels)


def test_what_varies_within_everybody_counts_less_the_second_time(method, monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 8)
    faces = rng.standard_normal((100, 64))[labels] + 0.5 * rng.standard_normal((800, 64))
    faces[:, :2] += 4 * rng.standard_normal((800, 2))
    features = normalise(faces.astype(np.float32), "faces")
    graph = build_knn(features, 40)

    def f_score():
        return bcubed(Contingency.of(labels, method(features, *graph).labels)).f_score

    assert f_score() > 0.9
    monkeypatch.setattr(Whitening, "__call__", lambda _, features: features)
    assert f_score() < 0.8


def test_the_outcome_is_of_whitened_faces(method, make_part, monkeypatch):
    part = make_part(0, num_faces=200)
    learn, learnt = Whitening.of, []
    monkeypatch.setattr(Whitening, "of", lambda *given: learnt.append(learn(*given)) or learnt[-1])
    found = method(part.features, part.indices, part.similarities)
    [whitening] = learnt
    seen = whitening(part.features)
    assert abs(seen @ seen.T - part.features @ part.features.T).max() > 0.01
    weights, strangers = edge_similarities(seen, part.indices), Strangers.of(seen, part.indices)
    assert found.similarity_threshold == strangers.similarity(0.0005)
    raw = Strangers.of(part.features, part.indices)
    assert found.centroid_rule == CentroidRule(strangers.similarity(0.002), raw.similarity(COMPARED))
    above = weights >= found.similarity_threshold
    assert np.array_equal(found.connectivity, symmetrise(above.astype(np.float32), part.indices))
    assert np.array_equal(found.density, density(found.connectivity, weights))
    above[:, 0] = False
    faces, columns = np.nonzero(above)
    pairs = np.unique(np.sort(np.stack([faces, part.indices[faces, columns]], axis=1), axis=1), axis=0)
    assert len(pairs)
    assert np.array_equal(found.edges_similar, pairs)


def test_alike_and_few_faces_are_handled(method):
    alike = np.ones((5, 4), dtype=np.float32) / 2
    assert np.array_equal(method(alike, *build_knn(alike, 3)).labels, np.zeros(5))
    one = np.eye(1, 4, dtype=np.float32)
    assert method(one, *build_knn(one, 1)).labels.tolist() == [0]
    two = np.eye(2, dtype=np.float32)
    assert len(np.unique(method(two, *build_knn(two, 2)).labels)) == 2


# The setting was chosen on the training parts.
@pytest.mark.parametrize(("name", "bound"), [("lfw-mixed", 0.92), ("lfw", 0.97)])
def test_real_faces_cluster_well_without_labels(name, bound, shared, tmp_path, method):
    for kind in ("features", "labels"):
        (tmp_path / kind).symlink_to(shared / "data" / name / kind)
    _, [part] = MS1M(str(tmp_path), 80, 128, None, [1]).load(train=False)  # the K that dataset=custom takes
    result, _ = evaluate_unsupervised(part, method)
    assert min(result.pairwise.f_score, result.bcubed.f_score) >= bound
