"""The commands of ``lcde``."""

import sys

import numpy as np
import pytest

from lcde.__main__ import main


@pytest.fixture
def lcde(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lcde", *map(str, arguments)])
        main()

    return run


@pytest.fixture
def arrays(tmp_path, make_part):
    part = make_part(0)
    np.save(tmp_path / "faces.npy", 3 * part.features)
    np.save(tmp_path / "people.npy", part.labels_true)
    return part


def test_there_and_back(lcde, arrays, tmp_path):
    lcde("to-ms1m", tmp_path / "faces.npy", tmp_path / "people.npy", tmp_path / "root", "part1_test")
    assert (tmp_path / "root" / "features" / "part1_test.bin").stat().st_size == arrays.features.nbytes
    lcde("from-ms1m", tmp_path / "root", "part1_test", arrays.features.shape[1], tmp_path / "back")
    np.testing.assert_allclose(np.load(tmp_path / "back" / "part1_test.features.npy"), arrays.features, atol=1e-6)
    labels = np.load(tmp_path / "back" / "part1_test.labels.npy")
    assert np.array_equal(labels, np.unique(arrays.labels_true, return_inverse=True)[1])


def test_nothing_is_overwritten(lcde, arrays, tmp_path, capsys):
    command = ("to-ms1m", tmp_path / "faces.npy", tmp_path / "people.npy", tmp_path / "root", "part1_test")
    lcde(*command)
    np.save(tmp_path / "faces.npy", arrays.features[::-1])
    before = (tmp_path / "root" / "features" / "part1_test.bin").read_bytes()
    with pytest.raises(SystemExit, match=r"part1_test\.bin exists already"):
        lcde(*command)
    assert (tmp_path / "root" / "features" / "part1_test.bin").read_bytes() == before


def test_files_of_different_lengths_are_refused(lcde, arrays, tmp_path):
    np.save(tmp_path / "people.npy", arrays.labels_true[:-1])
    with pytest.raises(SystemExit, match=r"40 faces, but .* 39 labels"):
        lcde("to-ms1m", tmp_path / "faces.npy", tmp_path / "people.npy", tmp_path / "root", "part1_test")


def test_export_of_a_missing_checkpoint_is_refused(lcde, tmp_path):
    with pytest.raises(SystemExit, match=r"none\.ckpt does not exist"):
        lcde("export", tmp_path / "none.ckpt", tmp_path / "lce.pth", tmp_path / "pce.pth")
