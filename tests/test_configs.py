"""Every choice of every config group composes and instantiates."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lcde.configuration import CONF, build, compose_config
from lcde.errors import InputError

CHOICES = [(file.parent.name, file.stem) for file in sorted(CONF.glob("*/*.yaml"))]


@pytest.fixture(params=CHOICES, ids="=".join)
def choice(request) -> tuple[str, str]:
    return request.param


def test_choice_instantiates(choice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group, name = choice
    if choice in (("trainer", "gpu"), ("trainer", "ddp")) and not torch.cuda.is_available():
        pytest.skip(f"trainer={name} needs a GPU")
    overrides = [f"{group}={name}"]
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
        hydra = OmegaConf.structured(HydraConf(mode=RunMode.RUN))
        HydraConfig.instance().set_config(OmegaConf.create({"hydra": hydra}))  # which names the run
    config = compose_config("eval" if group == "clustering" else "train", overrides)
    config.run_dir = str(tmp_path)
    if choice != ("model", "none"):
        build(config.get(group))


REFUSED = {  # group: overrides, and words of the message
    "dataset": [
        *(
            ("dataset=custom dataset.k=" + bad, f"dataset.k={bad} must be a whole number")
            for bad in ("abc", "2.5", "-1")
        ),
        ("dataset=custom dataset.k=null", r"dataset.k=None must be a whole number"),
        ("dataset=custom dataset.k=true", r"dataset.k=True must be a whole number"),
        ("dataset=custom dataset.feature_dim=0", "dataset.feature_dim=0 must be a whole number of at least 1 or null"),
        ("dataset=custom dataset.graph_k=-3", "dataset.graph_k=-3 must be a whole number"),
        ("dataset=custom dataset.val_share=abc", "dataset.val_share=abc must be a number from 0 to 1"),
        ("dataset=custom dataset.features=1", "dataset.features=1 must be text or null"),
        ("dataset=custom +dataset.feature=a.npy", "dataset cannot be used: .* unexpected keyword argument 'feature'"),
        ("dataset=ms1m dataset.root=null", "dataset.root=None must be text"),
        ("dataset=ms1m dataset.feature_dim=null", "dataset.feature_dim=None must be a whole number"),
        ("dataset=ms1m dataset.parts=1", r"dataset.parts=1 must be a list, such as \[1\]"),
        ("dataset=ms1m dataset.parts=part1_test", r"must be a list, such as \[part1_test\]"),
        ("dataset=ms1m dataset.parts=[1,1]", "dataset.parts names part1_test twice"),
        ("dataset=ms1m dataset.parts=[part0_train_held_out]", "names part0_train_held_out twice"),
        ("dataset=ms1m dataset._target_=lcde.data.datasets.Nothing", "dataset cannot be used: Error locating target"),
        ("dataset=synthetic dataset.parts=part1_test", r"must be a list, such as \[part1_test\]"),
        ("dataset=synthetic dataset.parts=2", r"dataset.parts=2 must be a list, such as \[2\]"),
        ("dataset=synthetic dataset.parts=[part1_test,part1_test]", "dataset.parts names part1_test twice"),
        ("dataset=synthetic dataset.parts=[part0_held_out]", "dataset.parts names part0_held_out twice"),
        ("dataset=synthetic dataset.parts=[part9_test]", "dataset.parts names 'part9_test'; .* has .*part1_test"),
        ("dataset=synthetic dataset.train_part=part9", "dataset.train_part names 'part9'; dataset.num_identities has"),
        ("dataset=synthetic dataset.train_part=part0_held_out", "held_out_part are both part0_held_out; rename one"),
        ("dataset=synthetic dataset.seed=-1", "dataset.seed=-1 must be a whole number"),
        ("dataset=synthetic dataset.nuisance_dim=0", "dataset.nuisance_dim=0 must be a whole number of at least 1"),
        (
            "dataset=synthetic dataset.nuisance_dim=64",
            "dataset.nuisance_dim=64 must be less than dataset.feature_dim=64",
        ),
        ("dataset=synthetic dataset.size_exponent=0", "dataset.size_exponent=0 must be a number of at least 0.01"),
        *(
            (f"dataset=synthetic dataset.num_identities.part1_test={bad}", f"part1_test={bad} must be a whole number")
            for bad in ("0", "-3", "2.5")
        ),
        ("dataset=synthetic dataset.blur=abc", "dataset.blur=abc must be a number"),
        ("dataset=random_galleries dataset.parts=some", "dataset.parts=some must be a whole number"),
    ],
    "trainer": [
        *(
            (f"trainer.max_epochs={bad}", f"trainer.max_epochs={bad} must be a whole")
            for bad in ("abc", "0", "-2", "1.5")
        ),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 must be a whole number"),
        ("trainer.precision=many", "trainer cannot be used: .*Precision 'many' is invalid"),
        ("trainer.strategy=none", "trainer cannot be used: .*invalid strategy name"),
        ("trainer.devices=0", "trainer cannot be used: .*devices=0"),
        ("+trainer.epochs=3", "trainer cannot be used: .* unexpected keyword argument 'epochs'"),
    ],
    "data": [
        *((f"data.batch_size={bad}", f"data.batch_size={bad} must be a whole number") for bad in ("abc", "0.5", "-1")),
        ("data.seed=-1", "data.seed=-1 must be a whole number"),
        ("data.rotate=maybe", "data.rotate=maybe must be True or False"),
        *(
            (f"data=nodes data.{key}=0", f"data.{key}=0 must be a whole number of at least 1")
            for key in ("nodes_per_step", "galleries", "validation_galleries")
        ),
        ("data=nodes data.seed=-1", "data.seed=-1 must be a whole number"),
        ("data=nodes data.real_share=2", "data.real_share=2 must be a number from 0 to 1"),
        *(
            (f"pairs.{key}=-1", f"pairs.{key}=-1 must be a number of at least 0")
            for key in ("density", "uncertain", "near")
        ),
        ("pairs.near_neighbours=0", "pairs.near_neighbours=0 must be a whole number of at least 1"),
        ("pairs=uniform pairs.pairs_per_face=-1", "pairs.pairs_per_face=-1 must be a number of at least 0"),
        ("pairs=fceser pairs.threshold=null", "pairs.threshold=None must be a number from -1 to 1"),
        ("pairs=fceser pairs.recall=2", "pairs.recall=2 must be a number from 0 to 1"),
        ("pairs=fceser pairs.pairs_per_face=-1", "pairs.pairs_per_face=-1 must be a number of at least 0"),
    ],
    "clustering": [
        ("clustering=components clustering.threshold=abc", "clustering.threshold=abc must be a number"),
        ("clustering=components clustering.threshold=7", "clustering.threshold=7 must be a number from -1 to 1"),
        ("clustering=unsupervised clustering.num_trials=0", "clustering.num_trials=0 must be a whole number"),
        ("clustering=unsupervised clustering.merging=maybe", "clustering.merging=maybe must be True or False"),
        ("clustering=lcde clustering.second_pass.seed=-1", "clustering.second_pass.seed=-1 must be a whole number"),
        ("clustering=lcde clustering.edge_threshold=nan", "clustering.edge_threshold=nan must be a number"),
        ("clustering=lcde +clustering.edges=1", "clustering cannot be used: .* unexpected keyword argument 'edges'"),
    ],
}


@pytest.mark.parametrize(
    ("group", "overrides", "words"),
    [(group, *case) for group, cases in REFUSED.items() for case in cases],
    ids=[case[0].split()[-1] for cases in REFUSED.values() for case in cases],
)
def test_unusable_values_are_refused_in_one_sentence(group, overrides, words, tmp_path):
    parsed = OverridesParser.create().parse_overrides(overrides.split())
    choices = [one.input_line for one in parsed if "." not in one.key_or_group]  # few, of which each is composed once
    config = compose_config("train", [*choices, "run_dir=none", "trainer.accelerator=cpu"])
    config.run_dir = str(tmp_path)
    for value in (one for one in parsed if "." in one.key_or_group):
        OmegaConf.update(config, value.key_or_group, value.value(), force_add=value.is_add())
    make = (lambda: build(config.data)(dataset=None)) if group == "data" else (lambda: build(config[group]))
    with pytest.raises(InputError, match=f"^[^\n]*{words}[^\n]*\\.$"):
        make()


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


def test_a_changed_configuration_stays_the_callers_own():
    compose_config("eval", []).seed = 7
    assert compose_config("eval", []).seed == 0


def test_a_users_file_is_read_anew(tmp_path):
    (tmp_path / "clustering").mkdir()
    for threshold in (0.5, 0.6):
        (tmp_path / "clustering" / "own.yaml").write_text(f"threshold: {threshold}")
        assert compose_config("eval", ["clustering=own"], tmp_path).clustering.threshold == threshold
