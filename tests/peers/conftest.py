"""Faces on which peers are trained shortly."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from lcde.configuration import compose_config
from lcde.data.datasets import Parts
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery
from lcde.data.knn import build_knn
from lcde.training.fit import set_up


@dataclass(frozen=True)
class Faces:
    """A data set of one training part without held-out identities."""

    gallery: Gallery
    k: int
    feature_dim: int

    def load(self, train):
        return Parts(self.gallery, None, [])


def make_blobs(people):
    """Faces of some ``people`` to train on, and of 60 others, D = 32 and K = 16.

    They vary along four directions more than along others, which networks learn to ignore.
    """
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(people + 60), rng.integers(5, 25, people + 60))
    directions = np.linalg.qr(rng.standard_normal((32, 32)))[0][:4]
    means = normalise(rng.standard_normal((people + 60, 32)).astype(np.float32), "people")
    X = means[labels] + 0.25 * rng.standard_normal((len(labels), 4)) @ directions
    features = normalise((X + 0.12 * rng.standard_normal(X.shape)).astype(np.float32), "faces")
    return [
        Gallery("faces", features[rows], build_knn(features[rows], 16), np.unique(labels[rows], return_inverse=True)[1])
        for rows in (labels < people, labels >= people)
    ]


@pytest.fixture(scope="session")
def train_on_blobs(tmp_path_factory):
    """Train a peer with some settings, once; returns the training, and the faces that it saw and did not see."""

    @functools.cache
    def train(people, peer, *settings):
        blobs = make_blobs(people)
        # "auto" would train in another precision where the processor has no instructions for bfloat16.
        trainer = "trainer=cpu", "trainer.precision=bf16-mixed"
        run = "~logger", "callbacks=training", *trainer, f"run_dir={tmp_path_factory.mktemp(peer)}"
        config = compose_config("train", [f"model={peer}", *run, "dataset.k=16", "dataset.feature_dim=32", *settings])
        torch.manual_seed(0)
        training = set_up(config, peer, Faces(blobs[0], 16, 32), None)
        training.trainer.fit(training.model, training.datamodule)
        return training, *blobs

    return lambda peer, *settings, people=60: train(people, peer, *settings)
