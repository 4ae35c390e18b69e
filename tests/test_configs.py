"""Every choice of every config group composes and instantiates."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate

CONF = Path(__file__).parents[1] / "conf"
CHOICES = [(file.parent.name, file.stem) for file in sorted(CONF.glob("*/*.yaml"))]


@pytest.fixture(params=CHOICES, ids="=".join)
def choice(request) -> tuple[str, str]:
    return request.param


def test_choice_instantiates(choice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group, name = choice
    if choice in (("trainer", "gpu"), ("trainer", "ddp")) and not torch.cuda.is_available():
        pytest.skip(f"trainer={name} needs a GPU")
    overrides = [f"{group}={name}", f"hydra.runtime.output_dir={tmp_path}"]
    if choice == ("logger", "tensorboard"):
        pytest.importorskip("tensorboard", reason="logger=tensorboard needs the extra of that name")
    if choice == ("logger", "wandb"):
        overrides.append("logger.mode=offline")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        instantiate(config[group])


def test_slurm_launcher_composes():
    plugin = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config", reason="needs the extra sweep")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["hydra/launcher=slurm"], return_hydra_config=True)
    assert config.hydra.launcher["_target_"] == plugin.SlurmQueueConf._target_
    assert config.hydra.launcher.gpus_per_node == 1


def test_no_optional_package_is_loaded_unasked():
    code = "import sys, train, eval; print({'optuna', 'submitit', 'tensorboard'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=CONF.parent, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# The custom data set has no width of its own until it is given a file.
@pytest.mark.parametrize("dataset", [name for group, name in CHOICES if group == "dataset" and name != "custom"])
def test_model_fits_every_dataset(dataset):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        module = instantiate(compose("train", [f"dataset={dataset}"]).model)
    assert module.hparams.k > 0
