import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from lcde import LCDE
from lcde.data.formats import normalise
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.metrics import Contingency, pairwise
from lcde.models.lcde import LCDEModel

# Checks of scikit-learn that do not apply to directions of embeddings.
NOT_APPLICABLE = {"check_estimators_dtypes": "its integers hold a row of zeros, which is no direction"}


@pytest.mark.slow
@parametrize_with_checks([LCDE(k=8, max_epochs=1)], expected_failed_checks=lambda _: NOT_APPLICABLE)
def test_scikit_learn_takes_it_for_its_own(estimator, check):
    if check.func.__name__ == "check_clustering":
        pytest.skip("its three blobs lie in a plane, where directions leave one dimension: it passes by chance")
    check(estimator)


@pytest.fixture(scope="module")
def faces():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), rng.integers(1, 12, size=40))
    return rng.standard_normal((40, 32))[labels] + 0.5 * rng.standard_normal((len(labels), 32)), labels


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


@pytest.mark.slow
def test_training_improves_on_chance_and_serves_new_faces(faces):
    X, y = faces
    estimator = LCDE(k=8, max_epochs=2).fit(X, y)
    assert isinstance(estimator.model_, LCDEModel)
    assert estimator.fit_predict(X[:60]).shape == (60,)
    assert estimator.connectivity_.shape == (60, 8)


@pytest.mark.slow
def test_training_starts_from_given_networks(faces, published):
    X, y = faces
    scratch, further = LCDE(k=8, max_epochs=1), LCDE.from_published(*published, max_epochs=1)
    assert further.fit(X, y).model_.lcenet.encoder.layers[0].linear1.out_features == 32
    assert scratch.fit(X, y).model_.lcenet.encoder.layers[0].linear1.out_features == 4 * 32


def test_networks_for_other_faces_start_no_training(faces, published):
    X, y = faces
    with pytest.raises(InputError, match=r"was trained with feature_dim=32"):
        LCDE.from_published(*published).fit(X[:, :30], y)


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, np.int8])
def test_every_dtype_gives_the_labels_of_float64(dtype, faces):
    X = np.round(8 * faces[0])
    assert np.array_equal(LCDE().fit_predict(X.astype(dtype)), LCDE().fit_predict(X))


def test_lengths_make_no_difference(faces):
    X, _ = faces
    lengths = 2.0 ** np.random.default_rng(0).integers(-10, 10, size=(len(X), 1))
    assert np.array_equal(LCDE().fit_predict(X * lengths), LCDE().fit_predict(X))


@pytest.mark.parametrize("y", [None, [0, 1]], ids=["cluster", "train"])
@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"k": 1}, "k=1 must be a whole number of at least 2"),
        ({"min_cluster_size": 2.5}, r"min_cluster_size=2\.5 must be a whole number of at least 1"),
        ({"min_cluster_size": -3}, "min_cluster_size=-3 must be a whole number"),
        ({"density_threshold": -5.0}, r"density_threshold=-5\.0 must be a number of at least 0 or null"),
        ({"max_epochs": 0}, "max_epochs=0 must be a whole number of at least 1 or null"),
        ({"random_state": None}, "random_state=None must be a whole number"),
        ({"overrides": ["clusterng.false_edges=0.5"]}, r"overrides=\['clusterng.*Could not override 'clusterng"),
        ({"overrides": ["model.dropout=0.2", "nonsense=1"]}, "Could not override 'nonsense'; .*--help"),
        ({"overrides": ["clustering.nonsense=1"]}, "nonsense"),
        ({"clustering": "nothing"}, "clustering=nothing, .* Could not find 'clustering/nothing'"),
        ({"clustering": "components"}, r"clustering\.threshold=null needs"),
        ({"clustering": "hdbscan", "density_threshold": 1.0}, r"density_threshold=1\.0 must be null: .* no density"),
    ],
)
def test_unusable_parameters_are_refused_before_the_faces_are_read(parameters, words, y):
    with pytest.raises(InputError, match=words):
        LCDE(**parameters).fit(None, y)


def test_a_rule_without_its_networks_is_refused_before_the_faces_are_read():
    with pytest.raises(InputError, match="clustering=exact needs trained networks"):
        LCDE(clustering="exact").fit(None)


def test_overrides_of_training_leave_clustering_as_it_is(faces):
    labels = LCDE(overrides=["model.num_layers=1", "data.batch_size=8"]).fit_predict(faces[0])
    assert np.array_equal(labels, LCDE().fit_predict(faces[0]))


@pytest.mark.parametrize(
    ("y", "words"),
    [(np.zeros(9), "two identities"), (np.arange(8), "inconsistent"), (np.full(9, np.nan), "NaN"), (np.eye(9), "1d")],
    ids=["one identity", "too short", "NaN", "matrix"],
)
def test_unusable_identities_are_refused_before_training(y, words):
    with pytest.raises(ValueError, match=words):
        LCDE(k=4).fit(np.eye(9), y)


def test_two_faces_are_enough_to_train_on():
    assert LCDE(max_epochs=1).fit(np.eye(2), [0, 1]).labels_.shape == (2,)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_faces(count, faces):
    labels = LCDE().fit_predict(np.eye(count, 32))
    assert np.array_equal(np.sort(labels), np.arange(count))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [2, 3, 10, 79, 81])
def test_galleries_around_k_are_clustered_without_a_warning(count):
    rng = np.random.default_rng(0)
    labels = np.arange(count) // 3
    X = rng.standard_normal((count, 128))[labels] + 0.2 * rng.standard_normal((count, 128))
    found = LCDE().fit_predict(X)
    assert np.array_equal(found[:, None] == found, labels[:, None] == labels) or count < 10
    apart = LCDE().fit_predict(rng.standard_normal((count, 128)))
    assert len(np.unique(apart)) == count or count < 10


def changed(X, how):
    rng, dim = np.random.default_rng(1), X.shape[1]
    if how == "rotation":
        return X @ np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    if how == "zeros":
        return np.concatenate([X, np.zeros_like(X)], axis=1)
    return X * (rng.uniform(0.1, 10, size=(len(X), 1)) if how == "lengths" else 1)


@pytest.mark.parametrize("how", ["order", "rotation", "zeros", "lengths"])
@pytest.mark.parametrize("many", [False, True])
def test_what_is_no_difference_between_faces_changes_no_cluster(how, many):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 20) if many else np.arange(160) // 2
    X = rng.standard_normal((labels.max() + 1, 64))[labels] + 0.5 * rng.standard_normal((len(labels), 64)) + 0.3
    order = rng.permutation(len(X)) if how == "order" else np.arange(len(X))
    expected, found = LCDE().fit_predict(X)[order], LCDE().fit_predict(changed(X, how)[order])
    assert np.array_equal(expected[:, None] == expected, found[:, None] == found)


def test_exact_copies_share_a_label(faces):
    X, _ = faces
    labels = LCDE().fit_predict(np.concatenate([X, X[::3]]))
    assert np.array_equal(labels[len(X) :], labels[: len(X)][::3])


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
    with pytest.raises(InputError, match=r"k=8.* 5 faces"):
        LCDE.from_published(*published).fit_predict(X[:5])


@pytest.mark.parametrize("trained", [False, pytest.param(True, marks=pytest.mark.slow)])
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
        together, order = np.concatenate([labels, assigned]), np.concatenate([known, new])
        score, at_once = (
            pairwise(Contingency.of(y[order], found)) for found in (together, LCDE().fit_predict(X[order]))
        )
        assert score.f_score > at_once.f_score - 0.06
        assert score.precision > 0.9
    opened = assigned[assigned >= estimator.n_clusters_]
    assert set(opened) == set(range(estimator.n_clusters_, estimator.n_clusters_ + len(set(opened))))


def test_noise_takes_no_new_face(faces):
    X, _ = faces
    estimator = LCDE(min_cluster_size=3)
    estimator.fit_predict(X)
    assert estimator.assign(X).min() >= 0


def test_faces_join_a_gallery_of_one():
    estimator = LCDE().fit(np.eye(1, 8))
    assert estimator.assign(np.eye(3, 8)[[1, 0, 0, 2]]).tolist() == [1, 0, 0, 2]


def test_a_model_named_later_is_used(faces, published):
    X, _ = faces
    estimator = LCDE(k=8).fit(X)
    assert estimator.model_ is None
    unsupervised = estimator.labels_
    estimator.set_params(lce_weights=published[0], pce_weights=published[1]).fit(X)
    assert isinstance(estimator.model_, LCDEModel)
    assert np.array_equal(estimator.set_params(lce_weights=None, pce_weights=None).fit(X).labels_, unsupervised)


def test_an_own_graph_is_used(faces):
    X, _ = faces
    graph = build_knn(normalise(X.astype(np.float32), "X"), 20)
    labels = LCDE(k=20).fit_predict(X)
    assert np.array_equal(LCDE(k=20).fit(X, graph=(graph.indices, graph.similarities)).labels_, labels)
    assert np.array_equal(LCDE(k=20).fit(X, graph=(graph.indices, None)).labels_, labels)
    with pytest.raises(InputError, match="graph"):
        LCDE(k=20).fit(X, graph=(graph.indices[:-1], None))


def test_a_reference_tells_what_strangers_look_like():
    """One person's album, whose photographs share what all embeddings share."""
    rng = np.random.default_rng(0)
    labels = np.append(np.zeros(30, dtype=np.int64), np.repeat(np.arange(1, 41), 6))
    X = rng.standard_normal((41, 64))[labels] + 0.6 * rng.standard_normal((len(labels), 64)) + 2
    album, others = X[:30], X[30:]
    assert LCDE(k=20).fit(album).n_clusters_ > 3
    estimator = LCDE(k=20, reference=others).fit(album)
    assert estimator.labels_.tolist() == [0] * 30
    assert estimator.density_.shape == (30,)
    alone = LCDE(k=20).fit(X).labels_
    strangers = LCDE(k=20, reference=album).fit(others)
    assert np.array_equal(strangers.labels_, np.unique(alone[30:], return_inverse=True)[1])
    assert strangers.labels_.max() + 1 == strangers.n_clusters_ == len(np.unique(alone[30:]))
    with pytest.raises(ValueError, match="reference has a width of 63, the faces to cluster one of 64"):
        LCDE(reference=others[:, 1:]).fit(album)


def test_a_memory_map_is_read_and_left_alone(faces, tmp_path):
    np.save(tmp_path / "X.npy", faces[0])
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert np.array_equal(LCDE().fit_predict(mapped), LCDE().fit_predict(faces[0]))


@pytest.mark.parametrize("clustering", ["unsupervised", "components", "map_equation"])
def test_every_rule_gives_the_same_attributes(clustering, faces):
    overrides = [] if clustering == "unsupervised" else ["clustering.threshold=0.6"]
    estimator = LCDE(clustering=clustering, overrides=overrides).fit(faces[0])
    assert pairwise(Contingency.of(faces[1], estimator.labels_)).f_score > 0.8
    for name in ("labels_", "n_clusters_", "density_", "connectivity_", "model_", "n_features_in_"):
        assert hasattr(estimator, name)


def test_training_leaves_the_callers_random_generators_alone(faces):
    X, y = faces
    np.random.seed(1)
    torch.manual_seed(1)
    expected = np.random.random(), float(torch.rand(1))
    np.random.seed(1)
    torch.manual_seed(1)
    deterministic = torch.are_deterministic_algorithms_enabled()
    LCDE(k=8, max_epochs=1, overrides=["model.num_layers=1"]).fit(X[:60], y[:60])
    assert (np.random.random(), float(torch.rand(1))) == expected
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_names_are_identities_too(faces):
    X, y = faces
    names = np.array([f"person {label}" for label in y])
    small = {"k": 8, "max_epochs": 1, "overrides": ["model.num_layers=1"]}
    labels = [
        LCDE(**small).fit(X[:60], identities[:60]).labels_
        for identities in (names, np.unique(names, return_inverse=True)[1])
    ]
    assert np.array_equal(*labels)
