import numpy as np
import pytest
import torch

from lcde.data.datamodule import EdgePairDataModule
from lcde.data.pairs import UniformPairs


class Stage:
    """The two attributes of a trainer that the data module reads."""

    current_epoch = 0
    training = True


@pytest.fixture
def datamodule(make_part):
    class TwoParts:
        def load(self, train):
            return make_part(0, 120, 16, 8), [make_part(1, 60, 16, 8)]

    module = EdgePairDataModule(TwoParts(), UniformPairs(1.0), batch_size=16, seed=0)
    module.setup("fit")
    module.trainer = Stage()
    return module


def test_batches_hold_indices_and_labels_only(datamodule):
    batch = next(iter(datamodule.train_dataloader()))
    labels = datamodule.train_part.labels_true
    assert batch.pairs.shape == (16, 2)
    assert batch.pairs.dtype == torch.int64
    assert np.array_equal(batch.same_identity, labels[batch.pairs[:, 0]] == labels[batch.pairs[:, 1]])


def test_neighbourhoods_are_built_from_the_part_in_use(datamodule):
    for training, part in ((True, datamodule.train_part), (False, datamodule.evaluation_parts[0])):
        datamodule.trainer.training = training
        loader = datamodule.train_dataloader() if training else datamodule.val_dataloader()[0]
        batch = next(iter(loader))
        neighbourhoods = datamodule.on_after_batch_transfer(batch, 0)
        for row, pair in enumerate(batch.pairs):
            for end, face in enumerate(pair):
                neighbours = part.indices[face]
                assert np.array_equal(neighbourhoods.features[row, end], part.features[neighbours])
                for other, centre in enumerate(pair):
                    same = part.labels_true[neighbours] == part.labels_true[centre]
                    assert np.array_equal(neighbourhoods.same_as_end[row, other, end], same)


def test_pairs_are_drawn_anew_each_epoch_and_alike_in_each_run(datamodule):
    first = datamodule.train_dataloader().dataset.pairs
    again = datamodule.train_dataloader().dataset.pairs
    datamodule.trainer.current_epoch = 1
    later = datamodule.train_dataloader().dataset.pairs
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_rotation_changes_training_features_alone_and_no_similarity(datamodule):
    batch = next(iter(datamodule.train_dataloader()))
    plain = datamodule.on_after_batch_transfer(batch, 0).features
    datamodule.rotate = True
    first, second = (datamodule.on_after_batch_transfer(batch, 0).features for _ in range(2))
    for turned in (first, second):
        assert (turned - plain).abs().max() > 0.1
        torch.testing.assert_close(turned @ turned.mT, plain @ plain.mT)
    assert (first - second).abs().max() > 0.1
    datamodule.trainer.training = False
    part = datamodule.evaluation_parts[0]
    faces = datamodule.on_after_batch_transfer(next(iter(datamodule.val_dataloader()[0])), 0)
    pairs = next(iter(datamodule.val_dataloader()[0])).pairs
    assert np.array_equal(faces.features, part.features[part.indices[pairs]])
