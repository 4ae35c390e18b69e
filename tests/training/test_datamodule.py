import numpy as np
import pytest
import torch

from lcde.data.datasets import Parts
from lcde.data.gallery import KNNGraph
from lcde.errors import InputError
from lcde.peers.gcn_v import GCNVModel
from lcde.training.datamodule import EdgePairDataModule
from lcde.training.pairs import UniformPairs


class Stage:
    """The attributes of a trainer that the data module reads."""

    current_epoch = 0
    training = True
    lightning_module = GCNVModel(16, 8, 4)


class Backwards(GCNVModel):
    """Reads neighbours from the farthest to the nearest."""

    def graph_of(self, gallery):
        return KNNGraph(gallery.graph.indices[:, ::-1].copy(), gallery.graph.similarities[:, ::-1].copy())


@pytest.fixture
def datamodule(make_gallery):
    class Galleries:
        def load(self, train):
            return Parts(make_gallery(0, 120, 16, 8), make_gallery(1, 60, 16, 8), [make_gallery(2, 60, 16, 8)])

    module = EdgePairDataModule(Galleries(), UniformPairs(1.0), batch_size=16, seed=0, rotate=False)
    module.trainer = Stage()
    return module


def test_batches_hold_indices_and_labels_only(datamodule):
    batch = next(iter(datamodule.train_dataloader()))
    labels = datamodule.train_gallery.labels_true
    assert batch.pairs.shape == (16, 2)
    assert batch.pairs.dtype == torch.int64
    assert np.array_equal(batch.same_identity, labels[batch.pairs[:, 0]] == labels[batch.pairs[:, 1]])


def test_neighbourhoods_are_those_of_the_gallery_in_use(datamodule):
    for training, gallery in ((True, datamodule.train_gallery), (False, datamodule.parts.validation)):
        datamodule.trainer.training = training
        loader = datamodule.train_dataloader() if training else datamodule.val_dataloader()[0]
        batch = next(iter(loader))
        neighbourhoods = datamodule.on_after_batch_transfer(batch, 0)
        assert torch.equal(neighbourhoods.pairs, batch.pairs)
        assert np.array_equal(neighbourhoods.graph.features_of(batch.pairs), gallery.features[batch.pairs])
        for row, pair in enumerate(batch.pairs):
            for end, face in enumerate(pair):
                neighbours = gallery.graph.indices[face]
                assert np.array_equal(neighbourhoods.features[row, end], gallery.features[neighbours])
                for other, centre in enumerate(pair):
                    same = gallery.labels_true[neighbours] == gallery.labels_true[centre]
                    assert np.array_equal(neighbourhoods.same_as_end[row, other, end], same)


def test_validation_reads_held_out_identities_alone(datamodule):
    assert len(datamodule.val_dataloader()) == 1
    datamodule.parts = Parts(datamodule.parts.train, None, datamodule.parts.evaluation)
    assert datamodule.val_dataloader() == []


def test_pairs_are_drawn_anew_each_epoch_and_alike_in_each_run(datamodule):
    def drawn():
        return torch.cat([batch.pairs for batch in datamodule.train_dataloader()])

    first, again = drawn(), drawn()
    datamodule.trainer.current_epoch = 1
    later = drawn()
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_rotation_changes_training_features_alone_and_no_similarity(datamodule):
    batch = next(iter(datamodule.train_dataloader()))
    plain = datamodule.on_after_batch_transfer(batch, 0).features
    datamodule.rotate = True
    first, again, other = (
        datamodule.on_after_batch_transfer(batch._replace(number=number), 0).features for number in (0, 0, 1)
    )
    for turned in (first, other):
        assert (turned - plain).abs().max() > 0.1
        torch.testing.assert_close(turned @ turned.mT, plain @ plain.mT)
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.1
    found = datamodule.on_after_batch_transfer(batch._replace(number=0), 0)
    assert torch.equal(found.graph.features_of(found.graph.indices[batch.pairs]), first)
    datamodule.trainer.training = False
    gallery = datamodule.parts.validation
    batch = next(iter(datamodule.val_dataloader()[0]))
    faces = datamodule.on_after_batch_transfer(batch, 0)
    assert np.array_equal(faces.features, gallery.features[gallery.graph.indices[batch.pairs]])


def test_an_empty_batch_is_refused_before_data_are_read():
    with pytest.raises(InputError, match=r"data\.batch_size=0"):
        EdgePairDataModule(None, UniformPairs(1.0), batch_size=0, seed=0, rotate=False)


def test_an_epoch_without_pairs_is_refused(datamodule):
    datamodule.sampler = UniformPairs(0.001)
    with pytest.raises(InputError, match="draws no pair of the 120 faces"):
        datamodule.train_dataloader()


def test_neighbours_come_in_the_order_that_the_model_reads(datamodule):
    datamodule.trainer.lightning_module = Backwards(16, 8, 4)
    gallery, batch = datamodule.train_gallery, next(iter(datamodule.train_dataloader()))
    found, neighbours = datamodule.on_after_batch_transfer(batch, 0), gallery.graph.indices[batch.pairs][..., ::-1]
    assert np.array_equal(found.features, gallery.features[neighbours])
    same = gallery.labels_true[neighbours] == gallery.labels_true[batch.pairs][..., None]
    assert np.array_equal(torch.stack([found.same_as_end[:, end, end] for end in range(2)], dim=1), same)
    assert np.array_equal(found.graph.indices, gallery.graph.indices[:, ::-1])
