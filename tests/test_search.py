import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lcde.data.knn
import lcde.data.search
from lcde.data.knn import build_knn, order_neighbours
from lcde.data.search import approximate_search, cuda_search, exact_search, recall


@given(st.integers(0, 10_000))
def test_recall_is_the_share_of_expected_neighbours(seed):
    rng = np.random.default_rng(seed)
    found, expected = (np.stack([rng.permutation(9)[:5] for _ in range(4)]) for _ in range(2))
    shared = sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), expected.tolist(), strict=True))
    assert recall(found, expected) == pytest.approx(shared / 20)


@pytest.mark.parametrize("feature_dim", [9, 16])
def test_approximate_search_finds_nearly_all_neighbours(make_part, capsys, feature_dim):
    features = make_part(0, num_faces=2_000, feature_dim=feature_dim).features
    similarities, indices = approximate_search(features, 10)(features)
    expected = exact_search(features, 10)(features)[1]
    assert recall(indices, expected) > 0.95
    own = np.einsum("nkd,nd->nk", features[indices], features)
    np.testing.assert_allclose(similarities, own, atol=1e-5)
    printed = capsys.readouterr().out
    assert "recall@10" in printed
    assert printed.count("\n") == 1


def test_fewer_cells_find_fewer_neighbours_and_say_so(make_part, capsys, monkeypatch):
    features = make_part(1, num_faces=2_000, feature_dim=16).features
    monkeypatch.setattr(lcde.data.search, "PROBES", 2)
    share = recall(approximate_search(features, 10)(features)[1], exact_search(features, 10)(features)[1])
    assert share < 0.9
    printed = float(capsys.readouterr().out.split("recall@10 ")[1].split("%")[0])
    assert printed == pytest.approx(100 * share, abs=5)  # on a quarter of the faces


def test_approximate_search_is_deterministic_whatever_the_block(make_part):
    features = make_part(2, num_faces=2_000, feature_dim=16).features
    expected = approximate_search(features, 10)(features)
    search = approximate_search(features, 10)
    blocks = [search(features[start : start + 300]) for start in range(0, 2_000, 300)]
    assert all(map(np.array_equal, map(np.concatenate, zip(*blocks, strict=True)), expected))


def test_approximate_search_fills_rows_that_its_cells_leave_short(make_part, monkeypatch):
    features = make_part(3, num_faces=200, feature_dim=8).features
    monkeypatch.setattr(lcde.data.search, "PROBES", 1)
    indices = approximate_search(features, 190)(features)[1]
    assert recall(indices, exact_search(features, 190)(features)[1]) == 1


def test_many_faces_are_searched_approximately(make_part, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("searches exactly on a GPU")
    features = make_part(4, num_faces=1_000, feature_dim=16).features
    build_knn(features, 10)
    assert "recall" not in capsys.readouterr().out
    monkeypatch.setattr(lcde.data.search, "EXACT_UP_TO", 999)
    indices, similarities = build_knn(features, 10)
    assert "recall" in capsys.readouterr().out
    assert (indices.dtype, similarities.dtype) == (np.int32, np.float32)
    assert np.array_equal(indices[:, 0], np.arange(1_000))
    assert all(len(set(row)) == 10 and min(row) >= 0 for row in indices.tolist())
    build_knn(features, 10, first_row=900)  # few faces are compared with all
    assert "recall" not in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_search_on_a_gpu_is_exact(make_part, monkeypatch):
    features = make_part(5, num_faces=1_000, feature_dim=16).features
    monkeypatch.setattr(lcde.data.search, "COLUMNS", 300)
    graphs = [order_neighbours(*search(features, 10)(features)[::-1]) for search in (cuda_search, exact_search)]
    assert recall(graphs[0][0], graphs[1][0]) > 0.999  # but for ties
    np.testing.assert_allclose(graphs[0][1], graphs[1][1], atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_chunk_size_does_not_change_the_order(make_part, monkeypatch, chunk):
    part = make_part(6, duplicates=9)
    shuffled = [array[:, ::-1] for array in (part.indices, part.similarities)]
    expected = order_neighbours(*shuffled)
    monkeypatch.setattr(lcde.data.knn, "CHUNK", chunk)
    assert all(map(np.array_equal, order_neighbours(*shuffled), expected))
