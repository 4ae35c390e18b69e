"""Checkpoints that survive a kill at any moment."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from lcde.data.formats import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target and rename; Lightning's own writes to the system's temporary folder and copies."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))
