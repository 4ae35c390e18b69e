"""Every choice of every config group composes and instantiates."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate

from lcde.configuration import CONF, build, compose_config

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
    for choice_of_extra, package in (
        (("logger", "tensorboard"), "tensorboard"),
        (("clustering", "infomap"), "infomap"),
        (("clustering", "fces"), "infomap"),
        (("clustering", "fceser"), "infomap"),
    ):
        if choice == choice_of_extra:
            pytest.importorskip(package, reason=f"{group}={name} needs the package {package}")
    if choice == ("model", "clusformer"):
        overrides.append("dataset=ms1m")  # the published heads do not divide D + K of the synthetic benchmark
    if choice == ("logger", "wandb"):
        overrides.append("logger.mode=offline")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        if choice != ("model", "none"):
            build(config.get(group))


def test_slurm_launcher_composes():
    plugin = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config", reason="needs the extra sweep")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["hydra/launcher=slurm"], return_hydra_config=True)
    assert config.hydra.launcher["_target_"] == plugin.SlurmQueueConf._target_
    assert config.hydra.launcher.gpus_per_node == 1


# The custom data set has no width of its own until it is given a file.
@pytest.mark.parametrize("dataset", [name for group, name in CHOICES if group == "dataset" and name != "custom"])
def test_model_fits_every_dataset(dataset):
    module = instantiate(compose_config("train", [f"dataset={dataset}"]).model)
    assert module.hparams.k > 0


def test_a_users_own_folder_is_searched():
    own = Path(__file__).parent / "commands" / "own_methods"
    assert compose_config("train", ["model=toy"], own).model._target_ == "toy_model.SimilarityModel"
