import pytest
import torch

from lcde.errors import InputError
from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet
from lcde.models.weights import NetworkPair, export_published, layer_sizes, load_networks, load_published, start_from


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    pair = NetworkPair(LCENet(16, 8, 2, 8, 32, 0.1), PCENet(16, 8, 3, 8, 64, 0.1), 16, 8, "here")
    paths = tmp_path / "lce.pth", tmp_path / "pce.pth"
    export_published(pair, *paths)
    return paths, pair


def test_sizes_follow_from_the_tensors(files):
    paths, pair = files
    loaded = load_published(*paths, nhead=8)
    assert (loaded.feature_dim, loaded.k) == (16, 8)
    assert (len(loaded.lcenet.encoder.layers), len(loaded.pcenet.encoder.layers)) == (2, 3)
    for network, original in ((loaded.lcenet, pair.lcenet), (loaded.pcenet, pair.pcenet)):
        for name, tensor in original.state_dict().items():
            assert torch.equal(network.state_dict()[name], tensor)


def test_half_a_pair_and_both_choices_are_refused(files):
    (lce, pce), _ = files
    assert load_networks(None, None, None, nhead=8) is None
    assert load_networks(None, lce, pce, nhead=8).k == 8
    for given in ((None, lce, None), (None, None, pce), ("best.ckpt", lce, None), ("best.ckpt", lce, pce)):
        with pytest.raises(InputError, match=r"either checkpoint=… or both"):
            load_networks(*given, nhead=8)


def test_export_overwrites_nothing(files):
    paths, pair = files
    with pytest.raises(InputError, match=r"lce\.pth exists already"):
        export_published(pair, *paths)


def test_a_checkpoint_that_lacks_a_tensor_is_told_with_its_network(files, tmp_path):
    _, pair = files
    state = {
        f"{prefix}.{name}": tensor
        for prefix, network in (("lcenet", pair.lcenet), ("pcenet", pair.pcenet))
        for name, tensor in network.state_dict().items()
    }
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"nhead": 8}}, path)
    assert load_networks(path, None, None, nhead=8).k == 8
    del state["pcenet.adjust_dim.0.weight"]
    torch.save({"state_dict": state, "hyper_parameters": {"nhead": 8}}, path)
    with pytest.raises(InputError, match=r"last\.ckpt lacks 'adjust_dim\.0\.weight', a tensor of PCENet"):
        load_networks(path, None, None, nhead=8)


def test_networks_start_from_trained_ones(files):
    paths, _ = files
    torch.save(PCENet(16, 8, 2, 8, 32, 0.1).state_dict(), paths[1])
    pair = load_published(*paths, nhead=8)
    assert layer_sizes(pair.lcenet) == {"num_layers": 2, "nhead": 8, "dim_feedforward": 32}
    networks = LCENet(16, 8, 2, 8, 32, 0.5), PCENet(16, 8, 2, 8, 32, 0.5)
    start_from(pair, *networks)
    for network, trained in zip(networks, (pair.lcenet, pair.pcenet), strict=True):
        assert all(map(torch.equal, network.state_dict().values(), trained.state_dict().values()))


def test_a_pair_of_different_layers_starts_nothing(files):
    paths, _ = files
    networks = LCENet(16, 8, 2, 8, 32, 0.5), PCENet(16, 8, 2, 8, 32, 0.5)
    with pytest.raises(InputError, match=r"lce\.pth and .*pce\.pth holds two networks of different layers"):
        start_from(load_published(*paths, nhead=8), *networks)


@pytest.mark.parametrize("layers", [(3, 8, 32), (2, 4, 32), (2, 8, 64)])
def test_networks_of_other_layers_start_nothing(files, layers):
    paths, _ = files
    torch.save(PCENet(16, 8, 2, 8, 32, 0.1).state_dict(), paths[1])
    networks = LCENet(16, 8, *layers, 0.5), PCENet(16, 8, *layers, 0.5)
    with pytest.raises(InputError, match=r"add model.num_layers=2 model.nhead=8 model.dim_feedforward=32\."):
        start_from(load_published(*paths, nhead=8), *networks)


def test_wrapped_state_dict_loads(files):
    paths, _ = files
    torch.save({f"module.{name}": tensor for name, tensor in torch.load(paths[0]).items()}, paths[0])
    assert load_published(*paths, nhead=8).k == 8


def test_swapped_files_are_named(files):
    (lce, pce), _ = files
    with pytest.raises(InputError, match=r"pce\.pth|lce\.pth"):
        load_published(pce, lce, nhead=8)


def test_pair_that_disagrees_is_refused(files, tmp_path):
    (lce, _), _ = files
    torch.save(PCENet(16, 16, 3, 8, 64, 0.1).state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"k=8, but .* k=16"):
        load_published(lce, tmp_path / "other.pth", nhead=8)


def test_heads_that_do_not_divide_are_refused(files):
    with pytest.raises(InputError, match=r"model\.nhead=5"):
        load_published(*files[0], nhead=5)


def test_missing_and_broken_files_are_named(files, tmp_path):
    (lce, pce), _ = files
    with pytest.raises(InputError, match=r"none\.pth"):
        load_published(tmp_path / "none.pth", pce, nhead=8)
    pce.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"pce\.pth is not a file of weights"):
        load_published(lce, pce, nhead=8)
    state = torch.load(lce)
    del state["classifier.2.bias"]
    torch.save(state, lce)
    torch.save(PCENet(16, 8, 3, 8, 64, 0.1).state_dict(), pce)
    with pytest.raises(InputError, match=r"lce\.pth does not hold the weights of LCENet"):
        load_published(lce, pce, nhead=8)
