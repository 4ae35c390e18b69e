"""Load trained networks."""

import pickle
from pathlib import Path

from lcde.errors import InputError
from lcde.models.module import LCDEModule


def load_checkpoint(path: str | Path) -> LCDEModule:
    """Load a checkpoint that train.py wrote; it can hold only plain values and tensors, so it runs no code.

    Raises `InputError` where the file is missing or not such a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"checkpoint not found: {path} does not exist; train.py writes checkpoints/best.ckpt in its run directory."
        )
    try:
        return LCDEModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a checkpoint written by train.py: {reason}") from None


def require_matching(module: LCDEModule, feature_dim: int, k: int, source: str) -> None:
    """Raise `InputError` unless the networks of ``source`` were made for D = ``feature_dim`` and K = ``k``."""
    for name, value in (("feature_dim", feature_dim), ("k", k)):
        own = module.hparams[name]
        if own != value:
            raise InputError(
                f"{source} was trained with {name}={own}, but dataset.{name} is {value}; add dataset.{name}={own}."
            )
