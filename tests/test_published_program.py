"""The project gives what the published inference program gives, on reference files and side by side."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_command_line import succeed

from lcde.clustering.pipeline import LCDEClustering
from lcde.data.datasets import IJBB, MS1M, DeepFashion
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet
from lcde.models.scoring import GraphScorer
from lcde.models.weights import export_published, load_checkpoint, load_published

REFERENCES = {
    "ms1m": lambda folder: MS1M(str(folder), 16, 64, None, [1]),
    "deepfashion": lambda folder: DeepFashion(str(folder), 16, 64, None, ["deepfashion_test"]),
    "ijb-b": lambda folder: IJBB(str(folder), 16, 64, None, [512]),
}


def cluster(part, pair):
    """The clustering of ``part``, LCENet's connectivity before it is symmetrised, and PCENet's of all density edges."""
    scorer = GraphScorer(pair.lcenet, pair.pcenet, part.features, part.indices)
    result = LCDEClustering()(part.features, part.indices, part.similarities, scorer)
    return result, scorer.connectivity(), scorer.edge_probability(result.edges_density)


def assert_same(part, result, directed, probability, expected):
    for name, actual in (("connectivity", directed), ("density", result.density), ("edge_probability", probability)):
        np.testing.assert_allclose(actual, expected[name], rtol=0, atol=1e-5, err_msg=name)
    for name in ("edges_density", "edges_similar"):
        assert np.array_equal(getattr(result, name), expected[name]), name
    assert_same_partition(result.labels, expected["labels"])
    table = Contingency.of(part.labels_true, result.labels)
    for metric in (pairwise, bcubed):
        score = metric(table)
        actual = [score.precision, score.recall, score.f_score]
        np.testing.assert_allclose(actual, expected[metric.__name__], rtol=0, atol=1e-9)


def assert_same_partition(labels, expected):
    assert len(np.unique(np.stack([labels, expected]), axis=1).T) == len(np.unique(labels)) == len(np.unique(expected))


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_is_reproduced(name, shared):
    folder = shared / "reference"
    _, [part] = REFERENCES[name](folder / name).load(train=False)
    pair = load_published(folder / "LCENet.pth", folder / "PCENet.pth", nhead=8)
    result, *scores = cluster(part, pair)
    assert_same(part, result, *scores, np.load(folder / name / "expected.npz"))


def run_published_program(shared: Path, folder: Path, part: str, weights: list[Path], sizes: dict[str, int]) -> dict:
    arguments = {
        "dataset_name": "MS-Celeb-1M",
        "feat_path": folder / "features" / f"{part}.bin",
        "label_path": folder / "labels" / f"{part}.meta",
        "knn_graph_path": folder / "knns" / part / f"faiss_k_{sizes['k']}.npz",
        "lce_path": weights[0],
        "pce_path": weights[1],
        "dump": folder / "dump.npz",
        **sizes,
    }
    program = shared / "peers" / "lce-pcenet" / "inference.py"
    command = [sys.executable, "-B", program, *(f"--{key}={value}" for key, value in arguments.items())]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "dump.npz")


def write_part(folder: Path, name: str, part) -> None:
    for kind in ("features", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    part.features.tofile(folder / "features" / f"{name}.bin")
    np.savetxt(folder / "labels" / f"{name}.meta", part.labels_true, fmt="%d")


@pytest.mark.parametrize(
    ("feature_dim", "k", "lce_width", "pce_width"), [(16, 8, 32, 64), (24, 16, 64, 32), (40, 24, 160, 160)]
)
def test_other_sizes_agree_with_the_program(feature_dim, k, lce_width, pce_width, shared, tmp_path, make_part):
    torch.manual_seed(k)
    lcenet = LCENet(feature_dim, k, 3, 8, lce_width, 0.1)
    pcenet = PCENet(feature_dim, k, 3, 8, pce_width, 0.1)
    write_part(tmp_path, "part1_test", make_part(k, num_faces=150, feature_dim=feature_dim, k=k))
    _, [part] = MS1M(str(tmp_path), k, feature_dim, None, [1]).load(train=False)
    with torch.no_grad():  # spread the answers of untrained networks over both classes
        lcenet.classifier[-1].weight *= 8
        pcenet.classifier[-1].weight *= 40
        logits = pcenet.eval()(torch.from_numpy(part.features[part.indices[part.indices[:, :2]]]).flatten(1, 2))
        pcenet.classifier[-1].bias -= logits.median(dim=0).values
    weights = [tmp_path / "LCENet.pth", tmp_path / "PCENet.pth"]
    torch.save(lcenet.state_dict(), weights[0])
    torch.save(pcenet.state_dict(), weights[1])

    sizes = {"feature_dim": feature_dim, "k": k, "dim_feedforward": lce_width, "nhid": pce_width}
    expected = run_published_program(shared, tmp_path, "part1_test", weights, sizes)
    pair = load_published(*weights, nhead=8)
    assert (pair.feature_dim, pair.k) == (feature_dim, k)
    assert_same(part, *cluster(part, pair), expected)


def test_exported_training_runs_in_the_program(shared, tmp_path, make_part):
    root, run = tmp_path / "data", tmp_path / "run"
    for seed, name in enumerate(("part0_train", "part1_test")):
        write_part(root, name, make_part(seed, num_faces=200, feature_dim=16, k=8))
    data = ["dataset=ms1m", f"dataset.root={root}", "dataset.feature_dim=16", "dataset.k=8"]
    data += ["trainer=cpu", "clustering=exact"]
    succeed("train.py", *data, "trainer.max_epochs=3", "trainer.log_every_n_steps=1", f"hydra.run.dir={run}")
    checkpoint = run / "checkpoints" / "best.ckpt"
    weights = [tmp_path / "LCENet.pth", tmp_path / "PCENet.pth"]
    export_published(load_checkpoint(checkpoint), *weights)

    succeed(
        "eval.py", *data, f"lce_weights={weights[0]}", f"pce_weights={weights[1]}", f"hydra.run.dir={tmp_path}/eval"
    )
    sizes = {"feature_dim": 16, "k": 8, "dim_feedforward": 64, "nhid": 64}
    expected = run_published_program(shared, root, "part1_test", weights, sizes)
    for folder in (run, tmp_path / "eval"):
        assert_same_partition(np.load(folder / "labels" / "part1_test.npy"), expected["labels"])
