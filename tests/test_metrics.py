from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from lcde.metrics import Contingency, Score, bcubed, nmi, pairwise

labelings = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=25).map(
    lambda both: tuple(np.array(labels) for labels in zip(*both, strict=True))
)


def ratio(part, whole):
    return part / whole if whole else 1.0


@given(labelings)
def test_pairwise_counts_all_pairs(both):
    true, predicted = both
    pairs = list(combinations(range(len(true)), 2))
    same = {(i, j) for i, j in pairs if true[i] == true[j]}
    joined = {(i, j) for i, j in pairs if predicted[i] == predicted[j]}
    score = pairwise(Contingency.of(true, predicted))
    assert score.precision == ratio(len(same & joined), len(joined))
    assert score.recall == ratio(len(same & joined), len(same))


@given(labelings)
def test_bcubed_averages_over_faces(both):
    true, predicted = both
    precision, recall = [], []
    for face in range(len(true)):
        identity, cluster = true == true[face], predicted == predicted[face]
        precision.append((identity & cluster).sum() / cluster.sum())
        recall.append((identity & cluster).sum() / identity.sum())
    score = bcubed(Contingency.of(true, predicted))
    assert score.precision == pytest.approx(np.mean(precision))
    assert score.recall == pytest.approx(np.mean(recall))


@given(labelings)
def test_nmi_agrees_with_scikit_learn(both):
    assert nmi(Contingency.of(*both)) == pytest.approx(normalized_mutual_info_score(*both), abs=1e-12)


@given(labelings, st.sampled_from([1, 2, 10**12]), st.sampled_from([0, 5, -(10**15)]))
def test_only_which_labels_are_equal_counts(both, factor, offset):
    table, renamed = Contingency.of(*both), Contingency.of(both[0] * factor + offset, both[1])
    for field in ("counts", "identity_sizes", "cluster_sizes", "identities", "clusters"):
        assert getattr(table, field).dtype == np.int64
        assert np.array_equal(getattr(table, field), getattr(renamed, field))


@given(labelings)
def test_perfect_clustering_scores_1(both):
    table = Contingency.of(both[0], both[0] + 7)
    assert pairwise(table).f_score == 1
    assert bcubed(table).f_score == pytest.approx(1)
    assert nmi(table) == pytest.approx(1)


def test_pairs_beyond_32_bits_are_counted():
    half = 2**17
    true, predicted = np.repeat([0, 1], half).astype(np.int32), np.zeros(2 * half, dtype=np.int32)
    table = Contingency.of(true, predicted)
    expected = half * (half - 1) / (half * (2 * half - 1))
    assert (pairwise(table).precision, pairwise(table).recall) == (expected, 1)
    assert (bcubed(table).precision, bcubed(table).recall) == (0.5, 1)
    assert nmi(table) == 0


@pytest.mark.slow
def test_five_million_faces_in_one_cluster():
    """12.5 million million pairs, of people with 1, 2, … 3,161 faces."""
    sizes = np.arange(1, 3_162)
    n = int(sizes.sum())
    true = np.random.default_rng(0).permutation(np.repeat(sizes, sizes))
    pairs, same = n * (n - 1) // 2, sum(size * (size - 1) // 2 for size in sizes.tolist())
    table = Contingency.of(true, np.zeros(n, dtype=np.int64))
    assert (pairwise(table).precision, pairwise(table).recall) == (same / pairs, 1)
    squares = sum(size * size for size in sizes.tolist())
    assert bcubed(table).precision == pytest.approx(squares / n**2, rel=1e-12)
    assert bcubed(table).recall == pytest.approx(1, rel=1e-12)
    assert nmi(table) == 0


@pytest.mark.slow
def test_five_million_faces_in_clusters_of_two():
    """2.5 million clusters, each of two faces of one of five people."""
    n = 5_000_000
    true, clusters = np.arange(n) // (n // 5), np.arange(n) // 2
    table = Contingency.of(true, clusters * 10**12)
    of_person = n // 5 * (n // 5 - 1) // 2
    assert pairwise(table) == Score(1, n // 2 / (5 * of_person))
    assert bcubed(table).precision == 1
    assert bcubed(table).recall == pytest.approx(2 / (n // 5), rel=1e-12)
    assert nmi(table) == pytest.approx(2 * np.log(5) / (np.log(5) + np.log(n / 2)), rel=1e-12)


@pytest.mark.parametrize("labels", [[0], [-1]])
def test_one_face_is_clustered_right(labels):
    table = Contingency.of(np.array([3]), np.array(labels))
    assert pairwise(table) == bcubed(table) == Score(1, 1)
    assert nmi(table) == 1


def test_singletons_that_are_right_are_all_right():
    table = Contingency.of(np.arange(4), np.arange(4)[::-1])
    assert pairwise(table) == bcubed(table) == Score(1, 1)
    assert nmi(table) == pytest.approx(1)


def test_faces_that_are_all_noise_count_as_one_cluster():
    table = Contingency.of(np.array([0, 0, 1, 1]), np.full(4, -1))
    assert pairwise(table) == Score(2 / 6, 1)
    assert bcubed(table) == Score(0.5, 1)


def test_all_singletons_have_full_precision():
    table = Contingency.of(np.array([0, 0, 0, 1]), np.arange(4))
    assert pairwise(table) == Score(1, 0)
    assert bcubed(table) == Score(1, 0.5)
    assert pairwise(table).f_score == 0


def test_one_cluster_has_full_recall():
    table = Contingency.of(np.array([0, 0, 0, 1]), np.zeros(4, dtype=int))
    assert pairwise(table) == Score(0.5, 1)
    assert bcubed(table) == Score(10 / 16, 1)


def test_f_score_of_nothing_right_is_0():
    assert Score(0.0, 0.0).as_dict() == {"precision": 0, "recall": 0, "f_score": 0}


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2)), ((4,), (4, 1))])
def test_wrong_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="equally long"):
        Contingency.of(*(np.zeros(shape, dtype=int) for shape in shapes))
