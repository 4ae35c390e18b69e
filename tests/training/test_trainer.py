import pytest
import torch

from lcde.training import trainer
from lcde.training.trainer import make_trainer

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


@pytest.mark.parametrize(("dtype", "precision"), [(torch.bfloat16, "bf16-mixed"), (torch.float32, "32-true")])
def test_auto_is_the_precision_that_the_device_gains_from(dtype, precision, monkeypatch):
    asked = []
    monkeypatch.setattr(trainer, "fastest_dtype", lambda device: asked.append(device.type) or dtype)
    assert make_trainer("cpu", "auto", **QUIET).precision == precision
    assert asked == ["cpu"]


def test_a_named_precision_stays():
    assert make_trainer("cpu", "64-true", **QUIET).precision == "64-true"


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cpu", "cuda", "mps"])
def test_the_device_is_the_one_that_lightning_takes(accelerator, monkeypatch):
    for cuda, mps in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(trainer.CUDAAccelerator, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(trainer.MPSAccelerator, "is_available", lambda mps=mps: mps)
        best = "cuda" if cuda else "mps" if mps else "cpu"
        expected = best if accelerator in ("auto", "gpu") else accelerator
        assert trainer._device(accelerator).type == expected
