"""Files of trained models: read and written whole, and refused by name."""

import pytest
import torch

from lcde.errors import InputError
from lcde.models.lcde import LCDEModel
from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet
from lcde.models.weights import (
    Trained,
    export_published,
    load_checkpoint,
    load_published,
    load_trained,
    require_matching,
    start_from,
)

SETTINGS = {"dropout": 0.1, "neighbours_per_end": 3, "negative_weight": 2.0}
pytestmark = pytest.mark.usefixtures("small_classifier")


def make_model(seed=0, num_layers=2, nhead=8, dim_feedforward=32):
    torch.manual_seed(seed)
    return LCDEModel(16, 8, num_layers, nhead, dim_feedforward, **SETTINGS)


def equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def files(model, tmp_path):
    """The published pair of ``model``."""
    paths = tmp_path / "lce.pth", tmp_path / "pce.pth"
    export_published(model, *paths)
    return paths


@pytest.fixture
def checkpoint(model):
    """What Lightning would save of ``model``."""
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    return checkpoint


@pytest.fixture
def save(tmp_path):
    def save(checkpoint, name="best.ckpt"):
        torch.save(checkpoint, tmp_path / name)
        return tmp_path / name

    return save


def test_a_checkpoint_names_its_method(model, checkpoint, save):
    rule = {"_target_": "lcde.methods.lcde.LCDERule", "edge_threshold": 0.5}
    checkpoint["method"] |= {"name": "lcde", "clustering": rule}
    path = save(checkpoint)
    trained = load_checkpoint(path)
    assert (trained.rule_name, trained.rule_config, trained.source) == ("lcde", rule, str(path))
    assert type(trained.model) is LCDEModel
    assert trained.model.hparams == model.hparams
    assert equal(trained.model, model)


@pytest.mark.parametrize("stored", ["all", "nhead"])
def test_checkpoints_of_earlier_versions_load(stored, save):
    """Version 0.2 wrote all of the hyper parameters below, versions before it fewer, none of them a method."""
    model = make_model(seed=1, dim_feedforward=None)
    hyper_parameters = {"feature_dim": 16, "k": 8, "num_layers": 2, "nhead": 8, "dim_feedforward": None, **SETTINGS}
    if stored == "nhead":
        hyper_parameters = {"nhead": 8, "of_another_version": 1}
    assert {name.split(".")[0] for name in model.state_dict()} == {"lcenet", "pcenet", "token_head"}
    path = save({"epoch": 0, "state_dict": model.state_dict(), "hyper_parameters": hyper_parameters})
    trained = load_checkpoint(path)
    assert (trained.rule_name, trained.rule_config) == (None, None)
    assert trained.model.layer_settings() == model.layer_settings()
    assert equal(trained.model, model)


def test_missing_and_broken_checkpoints_are_named(checkpoint, save, tmp_path):
    with pytest.raises(InputError, match=r"none\.ckpt does not exist"):
        load_checkpoint(tmp_path / "none.ckpt")
    for content, words in ((b"", "is empty"), (b"not a checkpoint", "cannot be read as a checkpoint")):
        (tmp_path / "broken.ckpt").write_bytes(content)
        with pytest.raises(InputError, match=rf"broken\.ckpt {words}"):
            load_checkpoint(tmp_path / "broken.ckpt")
    hyper_parameters = checkpoint["method"]["model"]
    for part in (
        {"state_dict": {}},
        {"method": 1},
        {"method": {}},
        {"method": {"model": [1]}},
        {"method": {"model": hyper_parameters, "clustering": 1}},
        {"method": {"model": hyper_parameters | {"unknown": 1}}},
        {"method": {"model": hyper_parameters | {"num_layers": 3}}},
    ):
        with pytest.raises(InputError, match=r"other\.ckpt cannot be read as a checkpoint"):
            load_checkpoint(save(checkpoint | part, "other.ckpt"))
    with pytest.raises(InputError, match=r"list\.ckpt cannot be read as a checkpoint"):
        load_checkpoint(save([1], "list.ckpt"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", "is no Model"),
        ("os.mkdir", "is no Model"),
        ("torch.nn.Linear", "is no Model"),
        ("lcde.models.lcenet.LCENet", "is no Model"),
        ("lcde.models.base", "is no Model"),
        ("lcde.models.lcde.None", "is of another version of lcde, which had lcde.models.lcde.None; name a rule"),
        ("no_such_package.Model", "is not installed here"),
        ("", "is not installed here|is no Model"),
        (["os.system"], "is not installed here"),
        ("lcde.models.base.PairModel", "cannot be read as a checkpoint"),
    ],
)
def test_only_models_are_constructed(target, message, save, tmp_path):
    settings = {"_target_": target, "path": str(tmp_path / "made"), "command": f"mkdir {tmp_path / 'made'}"}
    with pytest.raises(InputError, match=rf"evil\.ckpt.* {message}"):
        load_checkpoint(save({"state_dict": {}, "method": {"model": settings}}, "evil.ckpt"))
    assert not (tmp_path / "made").exists()


def test_a_module_that_cannot_be_imported_is_named(save, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    path = save({"state_dict": {}, "method": {"model": {"_target_": "broken_module.Model"}}})
    with pytest.raises(InputError, match=r"best\.ckpt needs broken_module\.Model, which cannot be imported"):
        load_checkpoint(path)


def test_an_old_checkpoint_that_lacks_a_tensor_is_told_with_its_network(model, save):
    state = model.state_dict()
    del state["pcenet.adjust_dim.0.weight"]
    with pytest.raises(InputError, match=r"last\.ckpt lacks 'adjust_dim\.0\.weight', a tensor of PCENet"):
        load_checkpoint(save({"state_dict": state, "hyper_parameters": {"nhead": 8}}, "last.ckpt"))


def test_sizes_follow_from_the_tensors(tmp_path):
    model = make_model(num_layers=[2, 3], dim_feedforward=[32, 64])
    paths = tmp_path / "lce.pth", tmp_path / "pce.pth"
    export_published(model, *paths)
    loaded = load_published(*paths)
    assert (loaded.feature_dim, loaded.k) == (16, 8)
    assert loaded.layer_settings() == {"num_layers": [2, 3], "nhead": 8, "dim_feedforward": [32, 64]}
    assert equal(loaded.lcenet, model.lcenet)
    assert equal(loaded.pcenet, model.pcenet)


def test_the_same_files_are_the_same_model(files):
    """Or their scores would be kept under another name in every run."""
    torch.manual_seed(1)
    first = load_published(*files)
    torch.manual_seed(2)
    assert equal(load_published(*files), first)


def test_half_a_pair_and_both_choices_are_refused(files, checkpoint, save):
    lce, pce = files
    path = save(checkpoint)
    assert load_trained(None, None, None) is None
    assert load_trained(None, lce, pce).source == f"{lce} and {pce}"
    assert load_trained(path, None, None).source == str(path)
    for given in ((None, lce, None), (None, None, pce), (path, lce, None), (path, lce, pce)):
        with pytest.raises(InputError, match=r"either checkpoint=… or both"):
            load_trained(*given)


def test_export_overwrites_nothing(model, files):
    with pytest.raises(InputError, match=r"lce\.pth exists already"):
        export_published(model, *files)


def test_a_model_starts_from_a_trained_one(model, checkpoint, save):
    started = make_model(seed=1)
    assert not equal(started, model)
    start_from(load_checkpoint(save(checkpoint)), started)
    assert equal(started, model)


@pytest.mark.parametrize("layers", [(3, 8, 32), (2, 4, 32), (2, 8, 64)])
def test_a_model_of_other_layers_starts_nothing(files, layers):
    with pytest.raises(InputError, match=r"add model.num_layers=2 model.nhead=8 model.dim_feedforward=32\."):
        start_from(load_trained(None, *files), make_model(1, *layers))


def test_settings_of_two_networks_are_named_without_spaces():
    """As the command line takes them."""
    trained = Trained(make_model(num_layers=[1, 2]), None, None, "best.ckpt")
    with pytest.raises(InputError, match=r"add model\.num_layers=\[1,2\] model"):
        start_from(trained, make_model())


def test_a_model_of_another_k_is_refused(model):
    trained = Trained(model, None, None, "best.ckpt")
    require_matching(trained, 16, 8)
    with pytest.raises(InputError, match=r"best\.ckpt was trained with k=8, but dataset\.k is 16; add dataset\.k=8"):
        require_matching(trained, 16, 16)
    with pytest.raises(InputError, match=r"feature_dim=16, but dataset\.feature_dim is 32"):
        require_matching(trained, 32, 8)


def test_wrapped_state_dict_loads(files):
    torch.save({f"module.{name}": tensor for name, tensor in torch.load(files[0]).items()}, files[0])
    assert load_published(*files).k == 8


def test_swapped_files_are_named(files):
    with pytest.raises(InputError, match=r"pce\.pth|lce\.pth"):
        load_published(*files[::-1])


def test_pair_that_disagrees_is_refused(files, tmp_path):
    torch.save(PCENet(16, 16, 3, 8, 64, 0.1).state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"k=8, but .* k=16"):
        load_published(files[0], tmp_path / "other.pth")


def test_heads_that_do_not_divide_are_refused(files):
    with pytest.raises(InputError, match=r"model\.nhead=5"):
        load_published(*files, nhead=5)


def test_missing_and_broken_files_are_named(files, tmp_path):
    lce, pce = files
    with pytest.raises(InputError, match=r"none\.pth"):
        load_published(tmp_path / "none.pth", pce)
    for content, words in ((b"", "is empty"), (b"nothing", "cannot be read as a file of weights")):
        (tmp_path / "broken.pth").write_bytes(content)
        with pytest.raises(InputError, match=rf"broken\.pth {words}"):
            load_published(lce, tmp_path / "broken.pth")
    state = LCENet(16, 8, 2, 8, 32, 0.1).state_dict()
    del state["classifier.2.bias"]
    torch.save(state, lce)
    with pytest.raises(InputError, match=r"lce\.pth does not hold the weights of LCENet"):
        load_published(lce, pce)
