"""The commands of ``lcde`` that convert files, and the one that lists commands."""

import numpy as np
import pytest


@pytest.fixture
def arrays(tmp_path, make_gallery):
    gallery = make_gallery(0)
    np.save(tmp_path / "faces.npy", 3 * gallery.features)
    np.save(tmp_path / "people.npy", gallery.labels_true)
    return gallery


def test_there_and_back(lcde, arrays, tmp_path):
    lcde("to-ms1m", tmp_path / "faces.npy", tmp_path / "people.npy", tmp_path / "root", "part1_test")
    assert (tmp_path / "root" / "features" / "part1_test.bin").stat().st_size == arrays.features.nbytes
    lcde("from-ms1m", tmp_path / "root", "part1_test", arrays.features.shape[1], tmp_path / "back")
    np.testing.assert_allclose(np.load(tmp_path / "back" / "part1_test.features.npy"), arrays.features, atol=1e-6)
    labels = np.load(tmp_path / "back" / "part1_test.labels.npy")
    assert np.array_equal(labels, np.unique(arrays.labels_true, return_inverse=True)[1])


def test_nothing_is_overwritten(lcde, arrays, tmp_path):
    command = ("to-ms1m", tmp_path / "faces.npy", tmp_path / "people.npy", tmp_path / "root", "part1_test")
    lcde(*command)
    np.save(tmp_path / "faces.npy", arrays.features[::-1])
    before = (tmp_path / "root" / "features" / "part1_test.bin").read_bytes()
    with pytest.raises(SystemExit, match=r"part1_test\.bin exists already"):
        lcde(*command)
    assert (tmp_path / "root" / "features" / "part1_test.bin").read_bytes() == before


def test_files_of_different_lengths_are_refused(lcde, arrays, tmp_path):
    np.save(tmp_path / "people.npy", arrays.labels_true[:-1])
    with pytest.raises(SystemExit, match="39 labels, but there are 40 faces"):
        lcde("to-ms1m", tmp_path / "faces.npy", tmp_path / "people.npy", tmp_path / "root", "part1_test")


def test_export_of_a_missing_checkpoint_is_refused(lcde, tmp_path):
    with pytest.raises(SystemExit, match=r"none\.ckpt does not exist"):
        lcde("export", tmp_path / "none.ckpt", tmp_path / "lce.pth", tmp_path / "pce.pth")


def test_exported_networks_are_those_of_the_checkpoint(lcde, trained, tmp_path):
    from lcde.models.weights import load_checkpoint, load_published

    checkpoint = trained[0] / "checkpoints" / "best.ckpt"
    lcde("export", checkpoint, tmp_path / "lce.pth", tmp_path / "pce.pth")
    ours, theirs = load_checkpoint(checkpoint).model, load_published(tmp_path / "lce.pth", tmp_path / "pce.pth")
    for name in ("lcenet", "pcenet"):
        state = getattr(theirs, name).state_dict()
        assert all((tensor == state[key]).all() for key, tensor in getattr(ours, name).state_dict().items())


def test_commands_are_listed_and_unknown_ones_refused(lcde, capsys):
    with pytest.raises(SystemExit):
        lcde("--help")
    with pytest.raises(SystemExit):
        lcde("cluster")
    assert "invalid choice: 'cluster'" in capsys.readouterr().err
