"""Small graphs for all tests, hypothesis settings, and the reference files beside the project."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from lcde.data.formats import normalise
from lcde.data.knn import build_knn
from lcde.data.part import Part
from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet
from lcde.models.weights import NetworkPair, export_published

settings.register_profile("lcde", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("lcde")


@pytest.fixture(scope="session")
def shared():
    """The folder ``shared`` beside the project's root, which a user's machine lacks."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the reference files in {folder}")
    return folder


@pytest.fixture(scope="session")
def make_part():
    """A part of random faces around random identities; the last ``duplicates`` faces repeat face 0."""

    def make(seed, num_faces=40, feature_dim=8, k=6, duplicates=0):
        rng = np.random.default_rng(seed)
        labels = rng.integers(num_faces // 4, size=num_faces)
        features = rng.standard_normal((num_faces // 4, feature_dim))[labels]
        features += 0.4 * rng.standard_normal(features.shape)
        features[num_faces - duplicates :], labels[num_faces - duplicates :] = features[0], labels[0]
        features = normalise(features.astype(np.float32), "a test")
        return Part("test", features, *build_knn(features, k), labels)

    return make


@pytest.fixture(scope="session")
def make_graph():
    """A graph full of ties: random neighbours, similarities in ±{0, ¼, ½, 1}, connectivity in {0, ¼, ½, 1}.

    All sums and products are exact, so tests can compare with ==.
    """

    def make(seed, num_faces, k):
        rng = np.random.default_rng(seed)
        indices = np.argsort(rng.random((num_faces, num_faces)), axis=1)
        indices = np.stack([[face, *row[row != face][: k - 1]] for face, row in enumerate(indices)]).astype(np.int32)
        similarities = rng.choice([-1, -0.5, -0.25, 0, 0.25, 0.5, 0.5, 1], size=indices.shape)
        similarities = -np.sort(-similarities, axis=1)
        similarities[:, 0] = 1
        connectivity = rng.choice([0, 0.25, 0.5, 1], size=indices.shape)
        return indices, similarities.astype(np.float32), connectivity.astype(np.float32)

    return make


@pytest.fixture
def published(tmp_path):
    """The files of an untrained pair of networks for D = 32 and K = 8, which one seed makes."""
    torch.manual_seed(0)
    paths = tmp_path / "lce.pth", tmp_path / "pce.pth"
    pair = NetworkPair(LCENet(32, 8, 3, 8, 32, 0.1), PCENet(32, 8, 3, 8, 32, 0.1), 32, 8, "test")
    export_published(pair, *paths)
    return paths
