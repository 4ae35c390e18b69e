import pytest
from pytorch_lightning.callbacks import RichProgressBar

from lcde.progress import track
from lcde.training.callbacks import EpochLines, progress_bar


@pytest.fixture(params=[True, False], ids=["watched", "log"])
def watched(request, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # with which rich takes any output for a terminal
        monkeypatch.setenv(name, "1") if request.param else monkeypatch.delenv(name, raising=False)
    return request.param


def test_bars_are_shown_only_to_those_who_watch(watched, capsys):
    assert list(track(range(3), "searching")) == [0, 1, 2]
    assert bool(capsys.readouterr().out) == watched
    assert list(track(range(3), "searching", shown=False)) == [0, 1, 2]
    assert not capsys.readouterr().out


def test_training_has_a_bar_or_a_line_an_epoch(watched):
    assert type(progress_bar()) is (RichProgressBar if watched else EpochLines)
