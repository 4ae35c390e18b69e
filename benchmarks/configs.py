"""The project's own settings, composed as its commands compose them."""

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from benchmarks import ROOT


def configured(command: str, *overrides: str) -> DictConfig:
    """What ``python <command>.py <overrides>`` would run with."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(command, list(overrides))
