from dataclasses import fields, replace
from typing import get_args

import numpy as np
import pytest

from benchmarks import merge_trees as training
from lcde.clustering.merge_trees import (
    CERTAIN,
    COLUMNS,
    FEW_CLUSTERS,
    MANY_CLUSTERS,
    SHIPPED,
    MergeTrees,
    Part,
    describe_pairs,
    write_trees,
)
from lcde.clustering.whitening import Whitened, cluster_sums
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.methods.unsupervised import UnsupervisedRule
from lcde.metrics import Contingency, pairwise

PEOPLE = np.repeat(np.arange(8), 20)


def faces(seed=0, dim=64, looks=3, apart=0.75, noise=0.6):
    """People who have several looks each, which are clusters of their own."""
    rng = np.random.default_rng(seed)
    people = rng.standard_normal((8, dim))[PEOPLE]
    of_look = rng.standard_normal((8, looks, dim))[PEOPLE, rng.integers(looks, size=len(PEOPLE))]
    return normalise((people + apart * of_look + noise * rng.standard_normal(people.shape)).astype(np.float32), "faces")


def gallery_of(features, labels=PEOPLE):
    return Gallery("test", features, build_knn(features, 40), labels)


def described(features, labels, order=slice(None)):
    """All pairs of the clusters, which the pairs themselves choose the order of."""
    whitened = Whitened.by(gallery_of(features), labels)
    pairs = np.stack(np.triu_indices(labels.max() + 1, 1), axis=1)[order]
    sums, sizes = cluster_sums(whitened.features, labels), np.bincount(labels)
    return pairs, describe_pairs(sums, sizes, pairs, whitened.impostors, 0.5, None)


@pytest.mark.parametrize("seed", range(4))
def test_looks_of_a_person_merge(seed):
    gallery = gallery_of(faces(seed))
    labels = [UnsupervisedRule(merge_trees=trees)(gallery).labels for trees in ("shipped", None)]
    merged, apart = (pairwise(Contingency.of(PEOPLE, each)) for each in labels)
    assert merged.f_score >= apart.f_score
    assert merged.precision == 1


def test_people_of_one_look_stay_apart():
    assert UnsupervisedRule()(gallery_of(faces(looks=1))).labels.max() == 7


def same_for_all(log_odds):
    """Trees that say the same of all pairs."""
    leaf = np.zeros((1, 1), dtype=np.int16)
    return MergeTrees(leaf - 1, leaf.astype(np.float64), leaf, leaf, leaf.astype(np.float32), np.float64(log_odds))


def alike(num_people, photographs=5):
    """People whose photographs are easily told from those of others."""
    labels = np.repeat(np.arange(num_people), photographs)
    people = np.random.default_rng(0).standard_normal((num_people, 64))[labels]
    noise = 0.6 * np.random.default_rng(1).standard_normal(people.shape)
    return gallery_of(normalise((people + noise).astype(np.float32), "faces"), labels)


@pytest.mark.parametrize(
    ("num_people", "log_odds", "merge"),
    [
        (FEW_CLUSTERS - 10, CERTAIN - 0.1, True),  # few merge, however uncertain that is
        (FEW_CLUSTERS + 10, CERTAIN - 0.1, False),
        (FEW_CLUSTERS + 10, CERTAIN + 0.1, True),
        (FEW_CLUSTERS + 10, -1, False),
    ],
)
def test_many_clusters_merge_only_if_that_is_certain(num_people, log_odds, merge, tmp_path):
    file, gallery = tmp_path / "trees.npz", alike(num_people)
    write_trees(file, dict.fromkeys(get_args(Part), same_for_all(log_odds)))
    by_trees, without = (UnsupervisedRule(merge_trees=trees)(gallery).labels for trees in (str(file), None))
    assert (by_trees.max() < without.max() / 2) if merge else np.array_equal(by_trees, without)


@pytest.mark.parametrize("few", [True, False])
def test_few_and_many_clusters_have_trees_of_their_own(few, tmp_path):
    file, gallery = tmp_path / "trees.npz", alike(FEW_CLUSTERS + (-10 if few else 10))
    write_trees(file, {"few": same_for_all(9 if few else -9), "many": same_for_all(-9 if few else 9)})
    assert UnsupervisedRule(merge_trees=str(file))(gallery).labels.max() < FEW_CLUSTERS // 2


def test_very_many_clusters_do_not_merge_by_trees(tmp_path):
    file, gallery = tmp_path / "trees.npz", alike(MANY_CLUSTERS + 20, photographs=2)
    write_trees(file, dict.fromkeys(get_args(Part), same_for_all(9)))
    found = [UnsupervisedRule(merge_trees=trees)(gallery).labels for trees in (str(file), None)]
    assert found[0].max() >= MANY_CLUSTERS
    assert np.array_equal(*found)


def test_pairs_are_described_by_brute_force_values():
    features = faces()
    labels = np.unique(PEOPLE * 2 + np.arange(len(PEOPLE)) % 2, return_inverse=True)[1]
    pairs, values = described(features, labels)
    whitened = Whitened.by(gallery_of(features), labels)
    similarity = whitened.features[:] @ whitened.features[:].T
    between = np.array([similarity[np.ix_(labels == a, labels == b)].mean() for a in range(16) for b in range(16)])
    between = between.reshape(16, 16)
    names, impostors = list(COLUMNS), whitened.impostors
    expected = (between[tuple(pairs.T)] - impostors.mean) / impostors.spread
    assert values[:, names.index("similarity")] == pytest.approx(expected, abs=1e-3)
    for (first, second), row in zip(pairs, values, strict=True):
        others = [np.delete(between[end], [first, second]).max() for end in (first, second)]
        gaps = sorted((between[first, second] - other) / impostors.spread for other in others)
        assert row[[names.index("gap, smaller"), names.index("gap, larger")]] == pytest.approx(gaps, abs=1e-3)
    assert values.shape == (len(pairs), len(COLUMNS))
    assert np.isfinite(values).all()


def test_neither_order_nor_direction_of_pairs_counts():
    labels = np.unique(PEOPLE * 2 + np.arange(len(PEOPLE)) % 2, return_inverse=True)[1]
    values, order = described(faces(), labels)[1], np.random.default_rng(0).permutation(120)
    assert described(faces(), labels, order)[1] == pytest.approx(values[order], abs=1e-4)


def test_log_odds_follow_the_nodes():
    trees = MergeTrees(
        column=np.array([[1, -1, -1], [-1, -1, -1]], dtype=np.int16),
        threshold=np.array([[0.5, 0, 0], [0, 0, 0]]),
        left=np.array([[1, 0, 0], [0, 0, 0]], dtype=np.int16),
        right=np.array([[2, 0, 0], [0, 0, 0]], dtype=np.int16),
        value=np.array([[0, -1, 2], [0.25, 0, 0]], dtype=np.float32),
        intercept=np.float64(-0.5),
    )
    described = np.array([[9, 0.5], [9, 0.6], [9, -3]], dtype=np.float32)
    assert trees.log_odds(described).tolist() == [-1.25, 1.75, -1.25]


@pytest.mark.parametrize("part", get_args(Part))
def test_the_shipped_trees_are_small_and_rise_with_similarity(part):
    assert SHIPPED.stat().st_size < 2 * 2**20
    rng, trees = np.random.default_rng(0), MergeTrees.read("shipped", part)
    rows = rng.normal(size=(200, len(COLUMNS))).astype(np.float32) * 3
    for place, sign in enumerate(COLUMNS.values()):
        higher = rows.copy()
        higher[:, place] += 2
        assert not sign or (sign * (trees.log_odds(higher) - trees.log_odds(rows)) >= -1e-5).all()


@pytest.fixture
def few(monkeypatch):
    """A training of a minute's hundredth."""
    for name, value in (
        ("SUBSETS", 6),
        ("RESAMPLED", 3),
        ("RANDOM_GALLERIES", 12),
        ("ALONE", 6),
        ("FORESTS", 2),
        ("SHARE", 0.9),
    ):
        monkeypatch.setattr(training, name, value)
    monkeypatch.setitem(training.SETTINGS, "max_iter", 5)
    monkeypatch.setitem(training.SETTINGS, "min_samples_leaf", 20)


@pytest.mark.slow
def test_trained_trees_are_written_and_used(few, tmp_path):
    folder = tmp_path / "data" / "own"
    for name in ("features", "labels"):
        (folder / name).mkdir(parents=True)
    faces().tofile(folder / "features" / "part1_test.bin")
    np.savetxt(folder / "labels" / "part1_test.meta", PEOPLE, fmt="%d")
    files = [tmp_path / f"{number}.npz" for number in range(2)]
    for file in files:
        training.main(["--data", str(tmp_path / "data"), "--real", "own/part1_test", "--to", str(file)])
    for part in get_args(Part):
        first, second = (MergeTrees.read(str(file), part) for file in files)
        assert np.array_equal(first.value, second.value)
    assert UnsupervisedRule(merge_trees=str(files[0]))(gallery_of(faces())).labels.max() < FEW_CLUSTERS


FLAT = {f"few.{each.name}": np.zeros(3) for each in fields(MergeTrees)}


@pytest.mark.parametrize("content", [None, b"text", {"column": np.zeros(3)}, FLAT])
def test_a_file_of_something_else_is_named_before_anything_is_clustered(content, tmp_path):
    file = tmp_path / "trees.npz"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        np.savez(file, **content)
    reason = r"trees\.npz cannot be read as merge trees: " if content else r"trees\.npz does not exist"
    with pytest.raises(InputError, match=reason):
        UnsupervisedRule(merge_trees=str(file))


@pytest.mark.parametrize(
    "wrong",
    [
        {"column": np.array([[len(COLUMNS), -1, -1]], dtype=np.int16)},
        {"left": np.array([[2, 0, 0]], dtype=np.int16)},
        {"right": np.array([[0, 0, 0]], dtype=np.int16)},
        {"right": np.array([[3, 0, 0]], dtype=np.int16)},
    ],
)
def test_trees_of_another_form_are_refused(wrong, tmp_path):
    right = MergeTrees(
        column=np.array([[0, -1, -1]], dtype=np.int16),
        threshold=np.zeros((1, 3)),
        left=np.array([[1, 0, 0]], dtype=np.int16),
        right=np.array([[2, 0, 0]], dtype=np.int16),
        value=np.zeros((1, 3), dtype=np.float32),
        intercept=np.float64(0),
    )
    for name, trees in (("right", right), ("wrong", replace(right, **wrong))):
        write_trees(tmp_path / f"{name}.npz", dict.fromkeys(get_args(Part), trees))
    UnsupervisedRule(merge_trees=str(tmp_path / "right.npz"))
    with pytest.raises(InputError, match="trees of another version"):
        UnsupervisedRule(merge_trees=str(tmp_path / "wrong.npz"))


def test_pairs_that_are_kept_weigh_for_those_left_out():
    similarity, rng = np.random.default_rng(0).permutation(1000) / 1000, np.random.default_rng(1)
    rows, times = training.thinned(similarity, 100, rng)
    assert len(np.unique(rows)) == 100
    assert times.sum() == pytest.approx(1000)
    assert set(np.argsort(-similarity)[:50]) <= set(rows[times == 1])
    rows, times = training.thinned(similarity, 1000, rng)
    assert np.array_equal(rows, np.arange(1000))
    assert (times == 1).all()
