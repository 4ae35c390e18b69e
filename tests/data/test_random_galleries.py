from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lcde.configuration import build
from lcde.data.random_galleries import SIZES, identity_sizes, spectrum
from lcde.errors import InputError

CONFIG = OmegaConf.load(Path(__file__).parents[2] / "conf" / "dataset" / "random_galleries.yaml")


def stream(**changes):
    return build(OmegaConf.merge(CONFIG, {"num_faces": [20, 400], "feature_dim": 192, **changes}))


def test_a_number_gives_the_same_gallery_and_another_number_another_one():
    features, labels = stream().draw(3)
    again, same_labels = stream().draw(3)
    assert np.array_equal(features, again)
    assert np.array_equal(labels, same_labels)
    for other in (stream().draw(4)[0], stream(seed=1).draw(3)[0]):
        assert features.shape != other.shape or not np.array_equal(features, other)


def test_galleries_are_unit_features_and_identities_without_gaps():
    for number in range(20):
        features, labels = stream().draw(number)
        assert features.dtype == np.float32
        assert labels.dtype == np.int64
        assert np.abs(np.linalg.norm(features, axis=1) - 1).max() < 1e-5
        assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
        assert 10 <= len(features) <= 420


def test_galleries_are_as_hard_as_asked():
    """Computed by another way than the stream's own check, from all pairs."""
    found = []
    for number in range(40):
        features, labels = stream(separation=[2.5, 3.5], wrong=[0, 0]).draw(number)
        centred = features - features.mean(axis=0) if labels.max() > 2 else features
        centred /= np.linalg.norm(centred, axis=1, keepdims=True)
        similarities, same = centred @ centred.T, labels[:, None] == labels
        np.fill_diagonal(same, False)
        genuine, impostors = similarities[same], similarities[~same & ~np.eye(len(labels), dtype=bool)]
        if min(len(genuine), len(impostors)) >= 10:
            found.append((genuine.mean() - impostors.mean()) / impostors.std())
    assert len(found) > 20
    assert min(found) > 2.45
    assert max(found) < 3.55


def test_parts_have_their_roles():
    parts = stream(parts=2, k=30).load(train=True)
    assert [gallery.name for gallery in [parts.train, *parts.evaluation]] == ["random_train", "random0", "random1"]
    assert parts.validation.held_out
    assert (np.bincount(parts.validation.labels_true) > 1).sum() >= 10
    assert stream(parts=1).load(train=False).train is None
    for gallery in parts.evaluation:
        assert gallery.graph.k == min(30, len(gallery))


@given(st.integers(1, 300), st.integers(0, 1000))
def test_sizes_suffice_for_the_faces_and_no_identity_is_empty(num_faces, seed):
    sizes = identity_sizes(num_faces, np.random.default_rng(seed))
    assert sizes.min() >= 1
    assert sizes.sum() >= num_faces
    assert sizes[:-1].sum() < num_faces


def test_all_kinds_of_sizes_occur():
    largest = [identity_sizes(300, np.random.default_rng(seed)).max() for seed in range(20 * len(SIZES))]
    assert min(largest) <= 2  # all alone, or nearly
    assert max(largest) > 150  # one person with most photographs


@given(st.floats(2, 90), st.integers(0, 1000))
def test_spectra_have_the_participation_ratio_asked_for(participation, seed):
    values = spectrum(128, participation, np.random.default_rng(seed))
    assert values.sum() == pytest.approx(1)
    assert 1 / (values**2).sum() == pytest.approx(participation, rel=1e-3)


def test_more_directions_than_coordinates_are_refused():
    with pytest.raises(InputError, match=r"within_dim=\[30, 150\] must lie between 1 and dataset\.feature_dim=128"):
        stream(feature_dim=128)
