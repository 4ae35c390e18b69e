"""Continue a training run that was interrupted."""

import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lcde.configuration import plain
from lcde.errors import InputError
from lcde.files import readable


def resumed(run_dir: Path) -> tuple[DictConfig, str]:
    """Settings and ``clustering=`` of the run in ``run_dir``; only its logger writes into the folder of this attempt.

    wandb continues the run that it has of it. Where the folder was moved, the paths in the settings are the new ones.

    Raises
    ------
    InputError
        Where it is not a training run, or where other settings are given with ``resume=…``.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise InputError(f"resume={run_dir} is not the folder of a training run: it holds no config.yaml.")
    others = [override for override in HydraConfig.get().overrides.task if not override.startswith("resume=")]
    if others:
        raise InputError(f"resume={run_dir} continues with the settings of that run; leave out {' '.join(others)}.")
    config, hydra = _loaded(path), _loaded(run_dir / ".hydra" / "hydra.yaml")
    if "callbacks" not in config:
        raise InputError(f"resume={run_dir} is a run of eval.py; name the folder of a training run.")
    config = OmegaConf.create(moved(plain(config, resolve=False), str(config.run_dir), str(run_dir.absolute())))
    if config.logger is not None:
        config.logger.save_dir = HydraConfig.get().runtime.output_dir
        if folders := sorted(run_dir.glob("wandb/*run-*-*")):  # run-<date and time>-<id>, offline-run-…
            config.logger.id = folders[0].name.rsplit("-", 1)[1]
    return config, str(OmegaConf.select(hydra, "hydra.runtime.choices.clustering"))


def moved(value: Any, old: str, new: str) -> Any:
    """``value`` with paths in the folder ``old`` changed to paths in ``new``, in dicts and lists too."""
    if isinstance(value, dict):
        return {moved(key, old, new): moved(entry, old, new) for key, entry in value.items()}
    if isinstance(value, list):
        return [moved(entry, old, new) for entry in value]
    if isinstance(value, str) and (value == old or value.startswith((f"{old}/", f"{old}{os.sep}"))):
        return new + value[len(old) :]
    return value


def _loaded(path: Path) -> DictConfig:
    with readable(path, "the settings of a training run"):
        config = OmegaConf.load(path)
        if not isinstance(config, DictConfig):
            raise ValueError(f"it holds a {type(config).__name__}")
        return config


def require_same_run(run_dir: Path, settings: str) -> None:
    """Raise `InputError` if ``run_dir`` holds checkpoints of other ``settings``, the text of a config.yaml."""
    path = run_dir / "config.yaml"
    if last_checkpoint(run_dir) is not None and not (path.is_file() and path.read_text(encoding="utf-8") == settings):
        raise InputError(f"{run_dir} holds a run of other settings; name another folder with hydra.run.dir=….")


def last_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint of the last epoch that ended, None where none did."""
    path = run_dir / "checkpoints" / "last.ckpt"
    return path if path.is_file() else None
