"""Checkpoints that survive a kill at any moment and run no code when they are read."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from lcde.data.formats import read_torch
from lcde.files import readable, write_atomically
from lcde.models.weights import CHECKPOINT


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target and rename; Lightning's own writes to the system's temporary folder and copies."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` whole or not at all."""
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read tensors and plain values; the arguments differ between versions of Lightning and change nothing."""
        with readable(Path(path), CHECKPOINT):
            return read_torch(Path(path))
