"""A model outside the package: one short class trains, is scored, saved and loaded like LCDE."""

import copy
import warnings
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from lcde.errors import InputError
from lcde.models.base import PairModel, PairNetworks
from lcde.models.score_cache import CachedScores
from lcde.models.weights import load_checkpoint


class Toy(PairModel):
    """Connectivity from a neighbour's similarity to the face, by a logistic function."""

    def __init__(self, feature_dim, k, hidden, optimizer=None, scheduler=None):
        super().__init__(feature_dim, k, optimizer, scheduler)
        self.head = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 1))

    def logits(self, features):
        return self.head((features * features[:, :1]).sum(-1, keepdim=True))[..., 0]

    def losses(self, batch, training):
        same = batch.same_as_end[:, 0, 0].float()
        return {"toy_loss": F.binary_cross_entropy_with_logits(self.logits(batch.features[:, 0]), same)}

    def networks(self, dtype):
        return PairNetworks(lambda features: self.logits(features.float()).sigmoid())


@pytest.fixture
def toy():
    torch.manual_seed(0)
    schedule = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1)
    return Toy(16, 8, 4, optimizer=partial(torch.optim.AdamW, lr=0.1), scheduler=schedule)


@pytest.fixture
def small_trainer(tmp_path):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    kept = {"enable_checkpointing": False, "default_root_dir": tmp_path}
    return partial(pl.Trainer, accelerator="cpu", max_epochs=1, **quiet, **kept)


def test_a_model_is_trained_saved_and_loaded(toy, batch, make_gallery, small_trainer, tmp_path):
    trainer = small_trainer(max_epochs=2)
    before = toy.losses(batch, training=False)["toy_loss"].item()
    loader = partial(torch.utils.data.DataLoader, batch_size=None)
    trainer.fit(toy, loader([batch] * 10), loader([batch]))
    assert trainer.callback_metrics.keys() >= {"train/toy_loss", "val/toy_loss"}
    assert trainer.callback_metrics["val/toy_loss"] < before
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == 20

    trainer.save_checkpoint(tmp_path / "toy.ckpt")
    trained = load_checkpoint(tmp_path / "toy.ckpt")
    assert type(trained.model) is Toy
    assert trained.model.hparams == {"feature_dim": 16, "k": 8, "hidden": 4}
    assert (trained.rule_name, trained.rule_config) == (None, None)
    gallery = make_gallery(1, 60, 16, 8)
    expected, actual = (model.bind(gallery, "auto", False, None).connectivity() for model in (toy, trained.model))
    assert expected.std() > 0.01
    assert np.array_equal(actual, expected)


class Limited(Toy):
    """On a device whose memory suffices for ``room`` pairs, forwards or backwards; without dropout."""

    mean_over_pairs, room, forwards = True, 20, True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.head[2] = nn.BatchNorm1d(8)  # of the neighbours

    def losses(self, batch, training):
        self.sizes = [*getattr(self, "sizes", []), len(batch.pairs)]
        losses = super().losses(batch, training)
        if len(batch.pairs) > self.room and training:
            if self.forwards:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            losses["toy_loss"].register_hook(self.fail)
        return losses

    def fail(self, gradient):
        raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def limited():
    torch.manual_seed(0)
    return Limited(16, 8, 4, optimizer=partial(torch.optim.SGD, lr=0.1))


@pytest.mark.parametrize("forwards", [True, False])
def test_batches_that_exceed_the_memory_are_trained_in_pieces(forwards, limited, batch, small_trainer):
    limited.forwards, limited.head[2] = forwards, nn.Identity()
    whole = copy.deepcopy(limited)
    whole.room = 60
    batch = type(batch)(*(tensor[:50] for tensor in batch[:4]), batch.graph)  # pieces of 13 and 12
    loader = torch.utils.data.DataLoader([batch] * 5, batch_size=None)
    small_trainer().fit(whole, loader)
    said = "memory of cpu does not suffice to train on 50 pairs at once; each batch is computed in 4 pieces"
    with pytest.warns(UserWarning, match=said) as warned:
        small_trainer().fit(limited, loader)
    assert sum("pieces" in str(warning.message) for warning in warned) == 1
    assert whole.sizes == [50] * 6  # the trial, and five steps
    assert limited.sizes[:4] == [50, 25, *((13, 13) if forwards else (25, 13))]
    assert set(limited.sizes[3:]) == {12, 13}
    for found, expected in zip(limited.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_trial_leaves_the_model_and_the_random_generator_alone(limited, batch):
    limited.head.append(nn.Dropout(0.5))
    tried = copy.deepcopy(limited)
    limited.pieces = 4
    state, results = torch.get_rng_state(), []
    for model in (limited, tried):
        torch.set_rng_state(state)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not suffice")
            results.append(model.training_losses(batch)["toy_loss"])
    assert tried.pieces == 4
    assert torch.equal(*results)
    assert all(map(torch.equal, tried.state_dict().values(), limited.state_dict().values()))
    assert all(parameter.grad is None for parameter in tried.parameters())


def test_intermediate_values_of_pieces_are_not_kept(limited, batch):
    def kept(pieces):
        limited.pieces, sizes = pieces, []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            limited.training_losses(batch)
        return sum(sizes)

    limited.room = 60
    assert kept(1) > 60 * 8 * 4
    assert kept(4) < 60


@pytest.mark.parametrize(("mean_over_pairs", "last"), [(True, 1), (False, 60)])
def test_a_batch_that_exceeds_the_memory_in_any_pieces_is_refused(mean_over_pairs, last, limited, batch, monkeypatch):
    monkeypatch.setattr(Limited, "mean_over_pairs", mean_over_pairs)
    limited.room = 0
    with pytest.raises(InputError, match=r"memory of cpu does not suffice .* 60 pairs .* lower data\.batch_size"):
        limited.training_losses(batch)
    assert limited.sizes[-1] == last


def test_a_checkpoint_keeps_what_others_say_of_the_method(toy, tmp_path):
    checkpoint = {"state_dict": toy.state_dict(), "method": {"name": "mine", "clustering": {"threshold": 0.5}}}
    toy.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "toy.ckpt")
    trained = load_checkpoint(tmp_path / "toy.ckpt")
    assert (trained.rule_name, trained.rule_config) == ("mine", {"threshold": 0.5})
    assert all(map(torch.equal, trained.model.state_dict().values(), toy.state_dict().values()))


def test_loading_leaves_the_random_generator_alone(toy, tmp_path):
    checkpoint = {"state_dict": toy.state_dict()}
    toy.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "toy.ckpt")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    load_checkpoint(tmp_path / "toy.ckpt")
    assert torch.equal(torch.get_rng_state(), state)


def test_scores_are_kept_if_a_folder_is_given(toy, make_gallery, tmp_path):
    gallery = make_gallery(1, 60, 16, 8)
    kept, computed = (toy.train().bind(gallery, "float32", False, folder) for folder in (tmp_path / "scores", None))
    assert isinstance(kept, CachedScores)
    for scores in (kept, computed):
        assert scores.connectivity(50).shape == (10, 8)
        np.testing.assert_allclose(scores.connectivity()[50:], scores.connectivity(50), rtol=1e-5)  # without dropout
        scores.dismiss()
    assert list((tmp_path / "scores").glob("*.connectivity.npz"))


def test_a_model_that_scores_no_edges_says_so(toy, make_gallery):
    with pytest.raises(InputError, match="gives no edge probabilities"):
        toy.bind(make_gallery(1, 60, 16, 8), "float32", False, None).edge_probability(np.array([[0, 1]]))


@pytest.mark.parametrize("hidden", [OmegaConf.create([4]), lambda: 4])
def test_hyper_parameters_that_no_checkpoint_could_hold_are_refused(hidden):
    with pytest.raises(InputError, match=r"'hidden': .* not plain values"):
        Toy(16, 8, hidden)


def test_training_needs_an_optimizer(toy):
    with pytest.raises(InputError, match=r"model\.optimizer"):
        Toy(16, 8, 4).configure_optimizers()
    toy.make_scheduler = None
    assert isinstance(toy.configure_optimizers(), torch.optim.AdamW)
