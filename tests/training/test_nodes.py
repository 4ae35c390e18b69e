import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lcde.configuration import build, compose_config
from lcde.errors import InputError
from lcde.models.universal import UniversalModel
from lcde.training.fit import set_up
from lcde.training.nodes import NodeDataModule, NodeStream, majority, make_example, partly_merged

SIZES = {"width": 16, "nhead": 2, "num_layers": 1, "context_width": 4, "candidates": 8}


@pytest.fixture(scope="module")
def data():
    small = ["dataset=random_galleries", "dataset.num_faces=[60,120]", "dataset.parts=1"]
    dataset = build(compose_config("eval", small).dataset)
    return NodeDataModule(dataset, nodes_per_step=30, galleries=3, validation_galleries=2, seed=0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return UniversalModel(**SIZES)


def batches(data, model, epoch, number=5):
    return list(itertools.islice(NodeStream(data, model, epoch), number))


def test_an_epoch_gives_the_same_batches_and_another_epoch_others(data, model):
    for first, second in zip(batches(data, model, 0), batches(data, model, 0), strict=True):
        assert torch.equal(first[1].features, second[1].features)
        assert torch.equal(first[0], second[0])
    assert not torch.equal(batches(data, model, 0, 1)[0][0][0], batches(data, model, 7, 1)[0][0][0])


def test_batches_mix_galleries_and_say_what_is_one_identity(data, model):
    found = batches(data, model, 1, 9)
    assert max(int(nodes.number.max()) for _, nodes, _ in found) > 0
    for same, nodes, sizes in found:
        assert same[:, 0].all()
        assert 2 <= len(same) <= 32
        assert sizes.shape == same.shape == nodes.rank.shape
        assert len(nodes.gallery) == int(nodes.number.max()) + 1
    assert 0.02 < torch.cat([same[:, 1:].flatten() for same, _, _ in found]).mean() < 0.9


def test_examples_are_clusters_with_the_identity_of_most_of_their_faces(data, model):
    example = next(filter(None, (make_example(data.dataset, number, model, True) for number in range(20))))
    assert len(example.identities) == len(example.nodes.nodes.sizes)
    assert example.nodes.graph.k <= SIZES["candidates"]


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 100))
def test_merges_at_random_join_clusters_of_one_identity(num_clusters, num_identities, seed):
    rng = np.random.default_rng(seed)
    identity_of = rng.integers(num_identities, size=num_clusters)
    labels = np.unique(np.append(np.arange(num_clusters), rng.integers(num_clusters, size=40)), return_inverse=True)[1]
    merged = partly_merged(labels, identity_of[labels], rng)
    assert np.array_equal(np.unique(merged), np.arange(merged.max() + 1))
    for cluster in range(num_clusters):
        assert len(np.unique(merged[labels == cluster])) == 1
    mixed = sum(len(np.unique(identity_of[labels[merged == cluster]])) > 1 for cluster in range(merged.max() + 1))
    assert mixed <= 2  # a hundredth of the merges is wrong


def test_the_identity_of_most_faces_counts():
    assert majority(np.array([0, 0, 0, 1, 1]), np.array([2, 2, 1, 0, 0])).tolist() == [2, 0]


def test_a_model_of_edge_pairs_or_of_clusters_needs_its_own_data():
    config = compose_config("train", ["model=universal", "run_dir=none"])
    with pytest.raises(InputError, match="data=… makes batches for a PairModel, not for a UniversalModel"):
        set_up(config, "lcde", None, None)


def test_other_data_sets_are_refused():
    dataset = build(compose_config("eval", []).dataset)
    with pytest.raises(InputError, match="add dataset=random_galleries"):
        NodeDataModule(dataset, 30, 3, 2, 0)
