"""Outputs are written whole or not at all, whatever the disk says."""

import locale
import os
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lcde.commands.compare import Job
from lcde.data.formats import write_knn
from lcde.errors import InputError
from lcde.evaluation.output import write_results
from lcde.evaluation.results import Result
from lcde.files import file_backed, remove_unfinished, require_writable, write_atomically, write_text
from lcde.methods.method import Clustering
from lcde.methods.saved import SavedClustering
from lcde.methods.unsupervised import UnsupervisedRule
from lcde.models.lcde import LCDEModel
from lcde.models.score_cache import CachedScores
from lcde.models.weights import export_published
from lcde.report.html import write_page
from lcde.report.plots import save_figures
from lcde.training.checkpoint_io import AtomicCheckpointIO
from lcde.training.resume import require_same_run

LIMIT = 100  # bytes


@contextmanager
def full_disk():
    """Let no file grow beyond `LIMIT` bytes, which fails as a full disk does; pytest's own output is such a file."""
    resource = pytest.importorskip("resource", reason="Windows has no limits of processes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def model():
    return LCDEModel(16, 8, 1, 8, 16, 0.1, neighbours_per_end=3, negative_weight=1.0)


def clustering(gallery):
    return SavedClustering(gallery.features, gallery.graph, np.zeros(40, dtype=np.int64), 6, UnsupervisedRule())


def score_nothing():
    raise AssertionError("nothing is scored where nothing can be kept")


RESULT = Result("part", "lcde", Clustering(np.arange(40)), {"total": 1.0})
PAGE = {"note": "", "columns": [], "lines": [], "best": None, "figures": {}}
WRITERS = {  # what writes a file, and its name
    "bytes": (lambda folder, _: write_atomically(folder / "a", lambda file: file.write(bytes(1000))), "a"),
    "data": (lambda folder, gallery: write_knn(folder / "a.npz", gallery.graph, "", "data"), "a.npz"),
    "knns": (lambda folder, gallery: write_knn(folder / "a.npz", gallery.graph, "", "knns"), "a.npz"),
    "arrays": (lambda folder, gallery: write_knn(folder / "a.npz", gallery.graph, "", "arrays"), "a.npz"),
    "npy": (lambda folder, gallery: write_knn(folder / "a.npy", gallery.graph, "", "npy"), "a.npy"),
    "clustering": (lambda folder, gallery: clustering(gallery).save(folder / "a.npz"), "a.npz"),
    "checkpoint": (lambda folder, _: AtomicCheckpointIO().save_checkpoint({"a": torch.ones(99)}, folder / "a"), "a"),
    "weights": (lambda folder, _: export_published(model(), folder / "a.pth", folder / "b.pth"), "a.pth"),
    "labels": (lambda folder, _: write_results([RESULT], folder), "labels/part.npy"),
    "text": (lambda folder, _: write_text(folder / "a.yaml", "a: 1\n" * 99), "a.yaml"),
    "page": (lambda folder, _: write_page(folder / "a.html", "sweep.html.j2", PAGE), "a.html"),
    "figure": (lambda folder, _: save_figures({"a": Figure()}, folder), "a.png"),
}


@pytest.mark.parametrize(("write", "name"), WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_told_and_leaves_what_was_there(write, name, make_gallery, tmp_path):
    gallery = make_gallery(0)
    old = tmp_path / name
    if name != "a.pth":  # an export overwrites nothing
        old.parent.mkdir(parents=True, exist_ok=True)
        old.write_bytes(b"old")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with full_disk(), pytest.raises(InputError, match=rf"{name} cannot be written: .*; check the disk's free space"):
        write(tmp_path, gallery)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not before or old.read_bytes() == b"old"


def test_a_full_disk_is_told_before_an_array_is_filled(tmp_path):
    with full_disk(), pytest.raises(InputError, match=r"cannot be written to: .*; check the disk's free space"):
        file_backed(tmp_path, (LIMIT, 2), np.float64)
    array = file_backed(tmp_path, (3, 2), np.int16)
    array[:] = 7
    assert (array.tolist(), list(tmp_path.iterdir())) == ([[7, 7]] * 3, [])


@pytest.mark.parametrize("depth", [1, 2])
def test_a_file_in_the_place_of_a_folder_is_told(depth, tmp_path):
    (tmp_path / "a").write_text("old")
    folder = tmp_path.joinpath("a", *["b"] * (depth - 1))
    for write in (
        lambda: write_atomically(folder / "c", lambda file: file.write(b"new")),
        lambda: require_writable(folder),
        lambda: CachedScores(score_nothing, folder, "key"),
    ):
        with pytest.raises(InputError, match=r"a(/b)?(/c)? cannot be written"):
            write()
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("write", [require_writable, partial(CachedScores, score_nothing, key="key")])
def test_a_folder_without_permission_is_told(write, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written to: Permission denied"):
        write(folder=tmp_path)


def test_a_checked_folder_is_there_and_empty(tmp_path):
    require_writable(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())


@pytest.fixture
def ascii_locale():
    """Let ``open`` take text for ASCII where no encoding is named, unless Python is in UTF-8 mode."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    yield
    locale.setlocale(locale.LC_CTYPE, before)


def test_text_is_read_as_it_was_written_in_any_locale(ascii_locale, tmp_path):
    settings = "root: /data/Jörg\n"
    write_text(tmp_path / "config.yaml", settings)
    write_text(tmp_path / "checkpoints" / "last.ckpt", "")
    require_same_run(tmp_path, settings)
    write_text(tmp_path / "log.txt", "error: no Jörg")
    assert Job("hac", 0, tmp_path, [], None).rows()[0]["error"] == "no Jörg"


def test_only_what_was_left_unfinished_is_removed(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "data").mkdir()
    names = ".env.template", "figures/a.png.unfinished", "figures/b.png", "data/.a.bin.7.unfinished"
    others = [tmp_path / name for name in names]  # the last one of a process that is at work
    for path in others:
        path.write_bytes(b"whole")

    write_atomically(tmp_path / "figures" / "a.png", partial(leave_behind, folder=tmp_path / "figures"))
    assert len(list((tmp_path / "figures").iterdir())) == 4
    remove_unfinished(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*others, tmp_path / "figures" / "a.png"}


def leave_behind(file, folder):
    """Write, and keep a second name of the temporary file, as if the process had been killed before it was renamed."""
    file.write(b"half")
    [temporary] = folder.glob(".a.png.*")
    os.link(temporary, temporary.with_name(temporary.name.replace(".a.png.", ".a.png.0")))
