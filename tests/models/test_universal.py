import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcde.clustering.nodes import describe
from lcde.errors import InputError
from lcde.models.universal import NodeBatch, UniversalModel, both_ways
from lcde.models.weights import load_checkpoint

SIZES = {"width": 16, "nhead": 2, "num_layers": 2, "context_width": 4, "dropout": 0.0, "candidates": 8}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return UniversalModel(**SIZES).eval()


@pytest.fixture(scope="module")
def galleries(make_gallery):
    return [make_gallery(seed, num_faces=60, feature_dim=16) for seed in range(3)]


def test_a_nodes_logits_do_not_depend_on_the_rest_of_its_batch(model, galleries):
    graphs = [describe(gallery.features, np.arange(60), 8) for gallery in galleries]
    alone = [NodeBatch.of(graph, np.arange(5), 8) for graph in graphs]
    parts = [batch._replace(number=batch.number + number) for number, batch in enumerate(alone)]
    together = NodeBatch._make(map(torch.cat, zip(*parts, strict=True)))
    with torch.inference_mode():
        expected = torch.cat([model.net(batch) for batch in alone])
        torch.testing.assert_close(model.net(together), expected, atol=1e-5, rtol=1e-5)
        assert expected.std() > 1e-3


def test_room_for_neighbours_that_are_not_there_changes_nothing(model, galleries):
    graph = describe(galleries[0].features, np.arange(60), 5)
    with torch.inference_mode():
        expected = model.net(NodeBatch.of(graph, np.arange(60), 5))
        found = model.net(NodeBatch.of(graph, np.arange(60), 8))
    torch.testing.assert_close(found[:, :5], expected, atol=1e-5, rtol=1e-5)


def test_the_rank_is_that_of_the_node_among_the_neighbours_of_its_neighbours(galleries):
    graph = describe(galleries[0].features, np.arange(60), 8)
    batch = NodeBatch.of(graph, np.array([7]), 8)
    for neighbour, rank in zip(graph.graph.indices[7], batch.rank[0].tolist(), strict=True):
        row = graph.graph.indices[neighbour].tolist()
        assert rank == pytest.approx(np.log1p(row.index(7) if 7 in row else 16) / 5, abs=1e-6)


def test_probabilities_do_not_change_with_a_rotation(model, galleries):
    gallery = galleries[0]
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))[0].astype(np.float32)
    labels = np.unique(gallery.labels_true, return_inverse=True)[1]
    scores = model.bind(gallery, "auto", False, None)
    indices, expected = scores.merge_probability(gallery.features, labels)
    rotated, found = scores.merge_probability(gallery.features @ rotation, labels)
    assert np.array_equal(indices, rotated)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 100))
def test_both_directions_count_where_both_are_there(num_nodes, k, seed):
    rng = np.random.default_rng(seed)
    k = min(k, num_nodes)
    others = [rng.permutation(np.delete(np.arange(num_nodes), i))[: k - 1] for i in range(num_nodes)]
    indices = np.stack([np.append(i, row) for i, row in enumerate(others)])
    probability = rng.random((num_nodes, k)).astype(np.float32)
    found = both_ways(probability, indices)
    for i in range(num_nodes):
        for column, j in enumerate(indices[i]):
            back = [probability[j, other] for other in range(k) if indices[j, other] == i]
            expected = np.mean([probability[i, column], *back]) if back else probability[i, column]
            assert found[i, column] == pytest.approx(expected, abs=1e-6)


def test_a_checkpoint_loads_and_fits_any_size(model, tmp_path):
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "best.ckpt")
    loaded = load_checkpoint(tmp_path / "best.ckpt").model
    assert (loaded.feature_dim, loaded.k) == (None, None)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_it_scores_no_edges(model, galleries):
    scores = model.bind(galleries[0], "auto", False, None)
    with pytest.raises(InputError, match="no connectivity of faces"):
        scores.connectivity()
    with pytest.raises(InputError, match="no edge probabilities"):
        scores.edge_probability(np.zeros((1, 2), dtype=np.int64))


def test_large_clusters_weigh_more_in_the_loss(model, galleries):
    graph = describe(galleries[0].features, np.arange(60), 8)
    batch, same = NodeBatch.of(graph, np.arange(4), 8), torch.zeros(4, 8)
    sizes = torch.ones(4, 8)
    sizes[0] = 1000
    losses = torch.nn.functional.softplus(model.net(batch))[:, 1:].mean(dim=1)
    weights = torch.log1p(torch.tensor([1000.0, 1, 1, 1])) + 1
    expected = (losses * weights).sum() / weights.sum()
    torch.testing.assert_close(model.losses((same, batch, sizes), True)["merge_loss"], expected)
