"""Lightning's Trainer in the precision that the device gains from."""

from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator

from lcde.errors import InputError
from lcde.models.precision import fastest_dtype
from lcde.progress import is_watched


def make_trainer(accelerator: str, precision: str, **settings: Any) -> Trainer:
    """A `Trainer` with all its arguments; ``precision`` "auto" is bf16-mixed where the device gains from it.

    Unless told otherwise, it has a progress bar only where somebody can see it.
    """
    epochs = settings.get("max_epochs")
    if epochs is not None and (not isinstance(epochs, int) or not (epochs == -1 or epochs > 0)):
        raise InputError(f"trainer.max_epochs={epochs} must be a whole number of at least 1, or -1 for no end.")
    if (batches := settings.get("accumulate_grad_batches", 1)) not in range(1, 2**31):
        raise InputError(f"trainer.accumulate_grad_batches={batches} must be a whole number of at least 1.")
    if precision == "auto":
        precision = "bf16-mixed" if fastest_dtype(_device(accelerator)) == torch.bfloat16 else "32-true"
    settings.setdefault("enable_progress_bar", is_watched())
    # Nothing here reads memory before it is written; filling it, which `deterministic` would do, costs a GPU a quarter.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of a module
    return Trainer(accelerator=accelerator, precision=precision, **settings)  # type: ignore[arg-type]


def _device(accelerator: str) -> torch.device:
    """The device that Lightning's ``accelerator`` means on this machine."""
    if accelerator in ("auto", "gpu"):
        accelerator = "cuda" if CUDAAccelerator.is_available() else "mps" if MPSAccelerator.is_available() else "cpu"
    return torch.device(accelerator)
