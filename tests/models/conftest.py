"""A batch of pairs and a narrow PCENet for the tests of models."""

import numpy as np
import pytest
import torch

from lcde.models import pcenet
from lcde.models.base import Neighbourhoods


@pytest.fixture
def small_classifier(monkeypatch):
    """PCENet's classifier with 16 hidden units in place of 2048: files of kilobytes, not of megabytes."""
    monkeypatch.setattr(pcenet, "HIDDEN", 16)


@pytest.fixture
def batch(make_gallery):
    """60 pairs of D = 16 and K = 8, of one identity and of two."""
    gallery = make_gallery(0, 60, 16, 8)
    indices, labels = gallery.graph.indices, torch.from_numpy(gallery.labels_true)
    pairs = np.stack([np.arange(60), indices[np.arange(60), np.arange(60) % 7 + 1]], axis=1)
    neighbours, ends = torch.from_numpy(indices[pairs]).long(), labels[torch.from_numpy(pairs)]
    same_as_end = (labels[neighbours][:, None] == ends[..., None, None]).long()
    return Neighbourhoods(
        torch.from_numpy(gallery.features)[neighbours], same_as_end, (ends[:, 0] == ends[:, 1]).long()
    )
