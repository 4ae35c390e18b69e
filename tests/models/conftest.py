"""A batch of pairs and a narrow PCENet for the tests of models."""

import numpy as np
import pytest
import torch

from lcde.models import pcenet
from lcde.models.base import DeviceGraph, Neighbourhoods


@pytest.fixture
def small_classifier(monkeypatch):
    """PCENet's classifier with 16 hidden units in place of 2048: files of kilobytes, not of megabytes."""
    monkeypatch.setattr(pcenet, "HIDDEN", 16)


@pytest.fixture
def batch(make_gallery):
    """60 pairs of D = 16 and K = 8, of one identity and of two."""
    gallery = make_gallery(0, 60, 16, 8)
    indices, features, labels = gallery.graph.indices, gallery.features, torch.from_numpy(gallery.labels_true)
    graph = DeviceGraph(torch.from_numpy(features), torch.from_numpy(indices), labels)
    pairs = np.stack([np.arange(60), indices[np.arange(60), np.arange(60) % 7 + 1]], axis=1)
    pairs = torch.from_numpy(pairs)
    neighbours, ends = graph.indices[pairs].long(), labels[pairs]
    same_as_end = (labels[neighbours][:, None] == ends[..., None, None]).long()
    same_identity = (ends[:, 0] == ends[:, 1]).long()
    return Neighbourhoods(graph.features_of(neighbours), same_as_end, same_identity, pairs, graph)
