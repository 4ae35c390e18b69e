"""The project gives what the published inference program gives: on stored outputs, on its data sets, side by side."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lcde.configuration import build, compose_config
from lcde.data.datasets import IJBB, MS1M, DeepFashion
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery, KNNGraph
from lcde.data.knn import build_knn
from lcde.methods.lcde import LCDERule
from lcde.methods.method import Method
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet
from lcde.models.weights import export_published, load_published

# A gallery, a tiny pair of networks and the program's outputs for them; `make_parity` made it.
PARITY = Path(__file__).parent / "parity.npz"
OUTPUTS = (
    "connectivity",
    "density",
    "edges_density",
    "edges_similar",
    "edge_probability",
    "labels",
    "pairwise",
    "bcubed",
)
REFERENCES = {
    "ms1m": lambda folder: MS1M(str(folder), 16, 64, None, [1]),
    "deepfashion": lambda folder: DeepFashion(str(folder), 16, 64, None, ["deepfashion_test"]),
    "ijb-b": lambda folder: IJBB(str(folder), 16, 64, None, [512]),
}


def assert_same(gallery, model, expected):
    """All stages, the labels and the scores are those of the program."""
    clustering = Method("exact", LCDERule(), model).cluster(gallery)
    details, scores = clustering.details, model.bind(gallery, "float32", False, None)
    actual = scores.connectivity(), details.density, scores.edge_probability(details.edges_density)
    for name, values in zip(("connectivity", "density", "edge_probability"), actual, strict=True):
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-5, err_msg=name)
    for name in ("edges_density", "edges_similar"):
        assert np.array_equal(getattr(details, name), expected[name]), name
    assert_same_partition(clustering.labels, expected["labels"])
    table = Contingency.of(gallery.labels_true, clustering.labels)
    for metric in (pairwise, bcubed):
        score = metric(table)
        values = [score.precision, score.recall, score.f_score]
        np.testing.assert_allclose(values, expected[metric.__name__], rtol=0, atol=1e-9)


def assert_same_partition(labels, expected):
    assert len(np.unique(np.stack([labels, expected]), axis=1).T) == len(np.unique(labels)) == len(np.unique(expected))


def stored(seed, num_faces, feature_dim, k):
    """A random gallery whose similarities are those that the program reads: it stores 1 - s."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_faces // 4, size=num_faces)
    features = rng.standard_normal((num_faces // 4, feature_dim))[labels]
    features = normalise((features + 0.4 * rng.standard_normal(features.shape)).astype(np.float32), "a test")
    graph = build_knn(features, k)
    return Gallery("test", features, KNNGraph(graph.indices, 1 - (1 - graph.similarities)), labels)


def untrained(gallery, lce_width, pce_width, hidden=None):
    """Networks whose answers fall into both classes; only ``hidden`` units of PCENet's large layers are not zero."""
    feature_dim, k = gallery.features.shape[1], gallery.graph.k
    torch.manual_seed(k)
    lcenet = LCENet(feature_dim, k, 3, 8, lce_width, 0.1)
    pcenet = PCENet(feature_dim, k, 3, 8, pce_width, 0.1).eval()
    with torch.no_grad():
        lcenet.classifier[-1].weight *= 8 if hidden is None else 30
        pcenet.classifier[-1].weight *= 40
        if hidden is not None:
            for layer in (pcenet.classifier[0], pcenet.classifier[2]):
                layer.weight[hidden:], layer.bias[hidden:] = 0, 0
            pcenet.classifier[2].weight[:, hidden:] = 0
            pcenet.classifier[2].weight *= 100
            pcenet.classifier[-1].weight[:, hidden:] = 0
        neighbours = torch.from_numpy(gallery.features[gallery.graph.indices[gallery.graph.indices[:, :2]]])
        pcenet.classifier[-1].bias -= pcenet(neighbours.flatten(1, 2)).median(dim=0).values
    return lcenet, pcenet


def run_program(shared, folder, gallery, weights, sizes):
    """Outputs of the published program for ``gallery`` and files of weights."""
    gallery.features.tofile(folder / "features.bin")
    np.savetxt(folder / "labels.meta", gallery.labels_true, fmt="%d")
    np.savez(folder / "graph.npz", data=np.stack([gallery.graph.indices, 1 - gallery.graph.similarities], axis=1))
    arguments = {
        "dataset_name": "MS-Celeb-1M",
        "feat_path": folder / "features.bin",
        "label_path": folder / "labels.meta",
        "knn_graph_path": folder / "graph.npz",
        "lce_path": weights[0],
        "pce_path": weights[1],
        "dump": folder / "dump.npz",
        "feature_dim": gallery.features.shape[1],
        "k": gallery.graph.k,
        **sizes,
    }
    program = shared / "peers" / "lce-pcenet" / "inference.py"
    command = [sys.executable, "-B", program, *(f"--{key}={value}" for key, value in arguments.items())]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "dump.npz") as outputs:
        return dict(outputs)


def make_parity(shared, folder, path):
    """Write the arrays of `PARITY` to ``path``; ``folder`` is for intermediate files."""
    gallery = stored(0, num_faces=60, feature_dim=16, k=8)
    networks, weights, arrays = untrained(gallery, 16, 16, hidden=16), (folder / "lce.pth", folder / "pce.pth"), {}
    for name, network, file in zip(("lce", "pce"), networks, weights, strict=True):
        state = {key: tensor.half().float() for key, tensor in network.state_dict().items()}
        torch.save(state, file)
        arrays |= {f"{name}/{key}": tensor.numpy().astype(np.float16) for key, tensor in state.items()}
    expected = run_program(shared, folder, gallery, weights, {"dim_feedforward": 16, "nhid": 16})
    arrays |= {name: expected[name] for name in OUTPUTS}
    arrays |= {"features": gallery.features, "labels_true": gallery.labels_true, **vars(gallery.graph)}
    np.savez_compressed(path, **arrays)


@pytest.fixture
def parity(tmp_path):
    """Arrays of `PARITY`, its gallery, and its networks as files."""
    with np.load(PARITY) as archive:
        arrays = dict(archive)
    files = tmp_path / "lce.pth", tmp_path / "pce.pth"
    for name, file in zip(("lce/", "pce/"), files, strict=True):
        state = {key: value for key, value in arrays.items() if key.startswith(name)}
        torch.save({key.removeprefix(name): torch.from_numpy(value).float() for key, value in state.items()}, file)
    graph = KNNGraph(arrays["indices"], arrays["similarities"])
    return arrays, Gallery("parity", arrays["features"], graph, arrays["labels_true"]), files


def test_stored_outputs_of_the_program_are_reproduced(parity):
    expected, gallery, files = parity
    assert PARITY.stat().st_size < 200_000
    assert 5 < len(np.unique(expected["labels"])) < 55
    assert 0.1 < (expected["edge_probability"] > 0.5).mean() < 0.9
    assert len(expected["edges_similar"])
    assert_same(gallery, load_published(*files, nhead=8), expected)


@pytest.mark.slow
def test_the_program_still_gives_the_stored_outputs(parity, shared, tmp_path):
    expected, gallery, files = parity
    outputs = run_program(shared, tmp_path, gallery, files, {"dim_feedforward": 16, "nhid": 16})
    for name in OUTPUTS:
        np.testing.assert_allclose(outputs[name], expected[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_stored_outputs_can_be_made_again(shared, tmp_path):
    make_parity(shared, tmp_path, tmp_path / "parity.npz")
    with np.load(tmp_path / "parity.npz") as made, np.load(PARITY) as kept:
        assert {name: made[name].dtype for name in made} == {name: kept[name].dtype for name in kept}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
def test_reference_is_reproduced(name, shared):
    folder = shared / "reference"
    [gallery] = REFERENCES[name](folder / name).load(train=False).evaluation
    model = load_published(folder / "LCENet.pth", folder / "PCENet.pth", nhead=8)
    assert_same(gallery, model, np.load(folder / name / "expected.npz"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("feature_dim", "k", "lce_width", "pce_width"), [(16, 8, 32, 64), (24, 16, 64, 32), (40, 24, 160, 160)]
)
def test_other_sizes_agree_with_the_program(feature_dim, k, lce_width, pce_width, shared, tmp_path):
    gallery = stored(k, 150, feature_dim, k)
    weights = tmp_path / "LCENet.pth", tmp_path / "PCENet.pth"
    for network, file in zip(untrained(gallery, lce_width, pce_width), weights, strict=True):
        torch.save(network.state_dict(), file)
    expected = run_program(shared, tmp_path, gallery, weights, {"dim_feedforward": lce_width, "nhid": pce_width})
    model = load_published(*weights, nhead=8)
    assert (model.feature_dim, model.k) == (feature_dim, k)
    assert_same(gallery, model, expected)
    exported = tmp_path / "exported_lce.pth", tmp_path / "exported_pce.pth"
    export_published(model, *exported)
    for written, again in zip(weights, exported, strict=True):
        read, state = torch.load(written, weights_only=True), torch.load(again, weights_only=True)
        assert list(read) == list(state)
        assert all(torch.equal(state[name], tensor) for name, tensor in read.items())


@pytest.mark.slow
def test_an_exported_training_run_gives_the_labels_of_the_program(lcde, tiny, shared, tmp_path):
    weights, run = (tmp_path / "LCENet.pth", tmp_path / "PCENet.pth"), tmp_path / "train"
    brief = "model.num_layers=3", "trainer.max_epochs=1", "report=false", "~baselines"
    lcde("train", *tiny, *brief, f"hydra.run.dir={run}")
    lcde("export", run / "checkpoints" / "last.ckpt", *weights)
    quick = "clustering=exact", "report=false", "score_cache=null", f"hydra.run.dir={tmp_path / 'eval'}"
    files = f"lce_weights={weights[0]}", f"pce_weights={weights[1]}"
    lcde("eval", *(setting for setting in tiny if not setting.startswith("model.")), *files, *quick)
    config = compose_config("eval", tiny)
    [gallery] = [part for part in build(config.dataset).load(train=False).evaluation if part.name == "part1_test"]
    width = 4 * gallery.features.shape[1]
    expected = run_program(shared, tmp_path, gallery, weights, {"dim_feedforward": width, "nhid": width})
    assert_same_partition(np.load(tmp_path / "eval" / "labels" / "part1_test.npy"), expected["labels"])
