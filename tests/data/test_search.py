import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

import lcde.data.search
from lcde.data.gallery import KNNGraph
from lcde.data.knn import build_knn, order_neighbours
from lcde.data.search import approximate_search, choose_search, exact_search, recall, torch_search


@given(st.integers(0, 10_000))
def test_recall_is_the_share_of_expected_neighbours(seed):
    rng = np.random.default_rng(seed)
    found, expected = (np.stack([rng.permutation(9)[:5] for _ in range(4)]) for _ in range(2))
    shared = sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), expected.tolist(), strict=True))
    assert recall(found, expected) == pytest.approx(shared / 20)


@pytest.mark.parametrize("feature_dim", [9, 16])
def test_approximate_search_finds_nearly_all_neighbours(make_gallery, capsys, feature_dim):
    features = make_gallery(0, num_faces=1_000, feature_dim=feature_dim).features
    indices, similarities = approximate_search(features, 10)(features)
    expected = exact_search(features, 10)(features)[0]
    assert recall(indices, expected) > 0.95
    own = np.einsum("nkd,nd->nk", features[indices], features)
    np.testing.assert_allclose(similarities, own, atol=1e-5)
    printed = capsys.readouterr().out
    assert "recall@10" in printed
    assert printed.count("\n") == 1


def test_fewer_cells_find_fewer_neighbours_and_say_so(make_gallery, capsys, monkeypatch):
    features = make_gallery(1, num_faces=1_000, feature_dim=16).features
    monkeypatch.setattr(lcde.data.search, "PROBES", 2)
    share = recall(approximate_search(features, 10)(features)[0], exact_search(features, 10)(features)[0])
    assert share < 0.9
    printed = float(capsys.readouterr().out.split("recall@10 ")[1].split("%")[0])
    assert printed == pytest.approx(100 * share, abs=5)  # on a quarter of the faces


def test_approximate_search_is_deterministic_whatever_the_block(make_gallery):
    features = make_gallery(2, num_faces=1_000, feature_dim=16).features
    expected = approximate_search(features, 10)(features)
    search = approximate_search(features, 10)
    blocks = [search(features[start : start + 300]) for start in range(0, 1_000, 300)]
    assert all(map(np.array_equal, map(np.concatenate, zip(*blocks, strict=True)), expected))


@pytest.mark.parametrize("make_search", [exact_search, approximate_search])
def test_the_number_of_threads_changes_no_neighbour(make_search, make_gallery):
    features, found = make_gallery(2, num_faces=1_000, feature_dim=16).features, []
    for threads in (1, 3):
        with threadpool_limits(threads):
            found.append(make_search(features, 10)(features))
    assert np.array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-6)


def test_approximate_search_fills_rows_that_its_cells_leave_short(make_gallery, monkeypatch):
    features = make_gallery(3, num_faces=200, feature_dim=8).features
    monkeypatch.setattr(lcde.data.search, "PROBES", 1)
    indices = approximate_search(features, 190)(features)[0]
    assert recall(indices, exact_search(features, 190)(features)[0]) == 1


def test_many_faces_are_searched_approximately(make_gallery, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("searches exactly on a GPU")
    features = make_gallery(4, num_faces=1_000, feature_dim=16).features
    build_knn(features, 10)
    assert "recall" not in capsys.readouterr().out
    monkeypatch.setattr(lcde.data.search, "EXACT_UP_TO", 999)
    graph = build_knn(features, 10)
    assert "recall" in capsys.readouterr().out
    assert (graph.indices.dtype, graph.similarities.dtype) == (np.int32, np.float32)
    assert np.array_equal(graph.indices[:, 0], np.arange(1_000))
    assert all(len(set(row)) == 10 and min(row) >= 0 for row in graph.indices.tolist())
    build_knn(features, 10, first_row=900)  # few faces are compared with all
    assert "recall" not in capsys.readouterr().out


def test_the_process_of_a_data_loader_leaves_the_gpu_alone(make_gallery, monkeypatch):
    features = make_gallery(5, num_faces=50, feature_dim=16).features
    asked = []
    monkeypatch.setattr(lcde.data.search, "torch_search", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: "worker 0 of 1")
    assert choose_search(features, 5, 50)(features)[0].shape == (50, 5)
    assert not asked
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: None)
    choose_search(features, 5, 50)
    assert asked or faiss.get_num_gpus()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("num_faces", "k", "chunk"), [(1_000, 10, 300), (1_000, 10, 7), (203, 40, 90), (20, 20, 300)])
def test_search_with_torch_is_exact(make_gallery, monkeypatch, num_faces, k, chunk, device):
    features = make_gallery(5, num_faces=num_faces, feature_dim=16).features
    monkeypatch.setattr(lcde.data.search, "FACES_PER_CHUNK", chunk)
    monkeypatch.setattr(lcde.data.search, "QUERIES", 128)
    search = torch_search(features, k, device)
    found, expected = (
        order_neighbours(KNNGraph(*each(features[::-1].copy()))) for each in (search, exact_search(features, k))
    )
    assert recall(found.indices, expected.indices) > 0.999  # but for ties
    np.testing.assert_allclose(found.similarities, expected.similarities, atol=1e-6)
