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
from lcde.training.nodes import (
    NodeDataModule,
    NodeStream,
    majority,
    make_batch,
    make_example,
    merged_by_likeness,
    partly_merged,
)

CANDIDATES = 8
SETTINGS = {"nodes_per_step": 32, "galleries": 3, "validation_galleries": 2, "seed": 0}


@pytest.fixture(scope="module")
def dataset():
    small = ["dataset=random_galleries", "dataset.num_faces=[60,120]", "dataset.parts=1"]
    return build(compose_config("eval", small).dataset)


@pytest.fixture(scope="module")
def data(dataset):
    return NodeDataModule(dataset, **SETTINGS, real=[], real_share=0.5)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Files of a labelled gallery of D = 32."""
    folder, rng = tmp_path_factory.mktemp("real"), np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 8)
    np.save(folder / "a.npy", rng.standard_normal((30, 32))[labels] + 0.7 * rng.standard_normal((240, 32)))
    np.savetxt(folder / "a.txt", labels, "%d")
    return {"features": str(folder / "a.npy"), "labels": str(folder / "a.txt")}


def batches(data, epoch, number=5):
    return list(itertools.islice(NodeStream(data, CANDIDATES, epoch), number))


def test_an_epoch_gives_the_same_batches_and_another_epoch_others(data):
    for first, second in zip(batches(data, 0), batches(data, 0), strict=True):
        assert torch.equal(first[1].features, second[1].features)
        assert torch.equal(first[0], second[0])
    assert not torch.equal(batches(data, 0, 1)[0][0][0], batches(data, 7, 1)[0][0][0])


def test_batches_mix_galleries_and_say_what_is_one_identity(data):
    found = batches(data, 1, 9)
    assert max(int(nodes.number.max()) for _, nodes, _ in found) > 0
    for same, nodes, sizes in found:
        assert same[:, 0].all()
        assert 2 <= len(same) <= 32
        assert sizes.shape == same.shape == nodes.rank.shape == (len(same), CANDIDATES)
        assert not same[~nodes.there].any()
        assert len(nodes.gallery) == int(nodes.number.max()) + 1
    assert 0.02 < torch.cat([same[:, 1:].flatten() for same, _, _ in found]).mean() < 0.9


def test_no_more_galleries_are_held_than_asked_for(data, monkeypatch):
    monkeypatch.setattr(data, "galleries", 1)
    assert max(int(nodes.number.max()) for _, nodes, _ in batches(data, 0, 4)) == 0


def test_galleries_of_few_clusters_and_of_other_widths_share_a_batch(make_gallery):
    def draw(number):
        gallery = make_gallery(number, num_faces=40, feature_dim=8 + 8 * number)
        return gallery.features, gallery.labels_true

    examples = [make_example(draw, number, 0, CANDIDATES) for number in (1, 2)]
    two = np.repeat(np.eye(2, 8, dtype=np.float32), 9, axis=0), np.repeat([0, 1], 9)
    few = make_example(lambda _: two, 0, 0, CANDIDATES)
    assert few.nodes.graph.k == 2
    same, nodes, sizes = make_batch([*examples, few], 30, CANDIDATES, np.random.default_rng(0))
    assert nodes.directions.shape == (len(same), CANDIDATES, 24)
    assert nodes.there[-2:].sum(dim=1).tolist() == [2, 2]
    torch.manual_seed(0)
    model = UniversalModel(16, 2, 1, 4, 0.1, CANDIDATES)
    assert torch.isfinite(model.losses((same, nodes, sizes), True)["merge_loss"])


def test_real_galleries_are_mixed_in(dataset, data, real):
    mixed = NodeDataModule(dataset, **SETTINGS, real=[real], real_share=0.5)
    same = [np.array_equal(mixed.draw(number)[0], data.draw(number)[0]) for number in range(20)]
    assert 3 < sum(same) < 17
    with pytest.raises(InputError, match=r"a\.npy has no labels; name the file"):
        NodeDataModule(dataset, **SETTINGS, real=[{"features": real["features"]}], real_share=0.5)


def test_examples_are_clusters_with_the_identity_of_most_of_their_faces(data):
    example = next(filter(None, (make_example(data.draw, number, 0, CANDIDATES) for number in range(20))))
    assert len(example.identities) == len(example.nodes.nodes.sizes)
    assert example.nodes.graph.k <= CANDIDATES


def test_merging_by_likeness_joins_clusters(make_gallery):
    features = make_gallery(0, num_faces=80, feature_dim=16).features
    found = [merged_by_likeness(features, np.arange(80), np.random.default_rng(seed)) for seed in range(8)]
    sizes = [labels.max() + 1 for labels in found]
    assert min(sizes) < 40
    assert all(np.array_equal(np.unique(labels), np.arange(size)) for labels, size in zip(found, sizes, strict=True))


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
        NodeDataModule(dataset, **SETTINGS, real=[], real_share=0.5)
