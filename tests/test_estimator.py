import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lcde import LCDE
from lcde.errors import InputError
from lcde.metrics import Contingency, pairwise
from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet
from lcde.models.weights import NetworkPair, export_published


@pytest.fixture(scope="module")
def faces():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), rng.integers(1, 12, size=40))
    return rng.standard_normal((40, 32))[labels] + 0.5 * rng.standard_normal((len(labels), 32)), labels


@pytest.fixture
def published(tmp_path):
    torch.manual_seed(0)
    paths = tmp_path / "lce.pth", tmp_path / "pce.pth"
    pair = NetworkPair(LCENet(32, 8, 3, 8, 32, 0.1), PCENet(32, 8, 3, 8, 32, 0.1), 32, 8, "test")
    export_published(pair, *paths)
    return paths


def test_three_lines_cluster_an_array(faces):
    X, y = faces
    labels = LCDE().fit_predict(X)
    assert labels.dtype == np.int64
    assert pairwise(Contingency.of(y, labels)).f_score > 0.9


def test_attributes(faces, published):
    X, _ = faces
    estimator = LCDE.from_published(*published)
    labels = estimator.fit_predict(X)
    assert np.array_equal(labels, estimator.labels_)
    assert estimator.n_clusters_ == len(np.unique(labels))
    assert estimator.density_.shape == (len(X),)
    assert estimator.connectivity_.shape == (len(X), 8)
    assert estimator.n_features_in_ == 32


def test_training_improves_on_chance_and_serves_new_faces(faces):
    X, y = faces
    estimator = LCDE(k=8, max_epochs=2).fit(X, y)
    assert estimator.networks_ is not None
    assert estimator.fit_predict(X[:60]).shape == (60,)
    assert estimator.connectivity_.shape == (60, 8)


def test_clone_pickle_and_pipeline(faces, published):
    X, _ = faces
    estimator = LCDE.from_published(*published, min_cluster_size=2)
    labels = estimator.fit_predict(X)
    assert np.array_equal(clone(estimator).fit_predict(X), labels)
    assert np.array_equal(pickle.loads(pickle.dumps(estimator)).fit_predict(X), labels)
    assert LCDE().set_params(**estimator.get_params()).get_params() == estimator.get_params()
    assert make_pipeline(StandardScaler(), LCDE()).fit_predict(X).shape == (len(X),)


def test_small_clusters_become_noise(faces):
    X, _ = faces
    plain, strict = LCDE().fit_predict(X), LCDE(min_cluster_size=3).fit_predict(X)
    assert np.array_equal(strict == -1, np.bincount(plain)[plain] < 3)
    assert strict.max() + 1 == (np.bincount(plain) >= 3).sum()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_faces(count, faces):
    labels = LCDE().fit_predict(np.eye(count, 32))
    assert np.array_equal(np.sort(labels), np.arange(count))


def test_all_faces_alike_are_one_cluster():
    assert np.array_equal(LCDE().fit_predict(np.ones((20, 8))), np.zeros(20))


@pytest.mark.parametrize(
    "X",
    [np.empty((0, 4)), np.ones(4), np.ones((2, 3, 4)), np.array([[1.0, np.nan]]), np.zeros((3, 2)), [["a", "b"]]],
    ids=["empty", "vector", "cube", "NaN", "zeros", "text"],
)
def test_unusable_input_raises_value_error(X):
    with pytest.raises(ValueError, match=r"\w"):
        LCDE().fit_predict(X)


def test_networks_for_another_width_or_k_are_refused(faces, published):
    X, _ = faces
    with pytest.raises(InputError, match="feature_dim=32"):
        LCDE.from_published(*published).fit_predict(X[:, :16])
    with pytest.raises(InputError, match="k=8"):
        LCDE.from_published(*published).fit_predict(X[:5])


@pytest.mark.parametrize("trained", [False, True])
def test_assigning_new_faces_moves_no_known_one(trained, faces):
    X, y = faces
    order = np.random.default_rng(0).permutation(len(X))
    known, new = np.sort(order[:150]), np.sort(order[150:])
    estimator = LCDE(k=8, max_epochs=1).fit(X, y) if trained else LCDE()
    labels = estimator.fit_predict(X[known]).copy()
    assigned = estimator.assign(X[new])
    assert np.array_equal(estimator.labels_, labels)
    assert assigned.shape == (len(new),)
    if not trained:  # networks of so few faces and steps are no measure
        labels_true = y[np.concatenate([known, new])]
        assert pairwise(Contingency.of(labels_true, np.concatenate([labels, assigned]))).f_score > 0.9
    opened = assigned[assigned >= estimator.n_clusters_]
    assert set(opened) == set(range(estimator.n_clusters_, estimator.n_clusters_ + len(set(opened))))


def test_noise_takes_no_new_face(faces):
    X, _ = faces
    estimator = LCDE(min_cluster_size=3)
    estimator.fit_predict(X)
    assert estimator.assign(X).min() >= 0
