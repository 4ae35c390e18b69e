"""A narrow PCENet for the tests of models."""

import pytest

from lcde.models import pcenet


@pytest.fixture
def small_classifier(monkeypatch):
    """PCENet's classifier with 16 hidden units in place of 2048: files of kilobytes, not of megabytes."""
    monkeypatch.setattr(pcenet, "HIDDEN", 16)
