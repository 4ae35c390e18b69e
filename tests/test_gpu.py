"""On a CUDA GPU: the scores and labels of a CPU, and training that repeats itself."""

import json
import time

import numpy as np
import pytest
import torch

from lcde import LCDE
from lcde.models.base import DeviceGraph, Neighbourhoods
from lcde.models.lcde import LCDEModel
from lcde.models.universal import UniversalModel

pytestmark = pytest.mark.gpu

D, K = 32, 16
CUDA = torch.device("cuda")


@pytest.fixture
def gallery(make_gallery):
    return make_gallery(0, num_faces=300, feature_dim=D, k=K)


def make_model():
    torch.manual_seed(0)
    model = LCDEModel(D, K, 2, 8, 64, 0.1, 8, 1.0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def scores_of(model, gallery, precision):
    scores = model.bind(gallery, precision, False, None)
    return scores.connectivity(), scores.edge_probability(gallery.graph.indices[:, :2].astype(np.int64))


@pytest.mark.parametrize(("precision", "largest", "typical"), [("float32", 1e-4, 1e-5), ("auto", 0.1, 0.01)])
def test_scores_are_those_of_a_cpu(gallery, precision, largest, typical):
    model = make_model()
    expected = scores_of(model, gallery, "float32")
    for on_gpu, on_cpu in zip(scores_of(model.to(CUDA), gallery, precision), expected, strict=True):
        assert on_cpu.std() > 0.01
        difference = np.abs(on_gpu - on_cpu)
        assert difference.max() < largest
        assert difference.mean() < typical


def test_judgement_of_clusters_is_that_of_a_cpu(gallery):
    torch.manual_seed(0)
    model = UniversalModel(width=16, nhead=4, num_layers=2, context_width=8, dropout=0.1, candidates=12)
    indices, expected = model.bind(gallery, "float32", False, None).merge_probability(gallery.features, np.arange(300))
    found = model.to(CUDA).bind(gallery, "float32", False, None).merge_probability(gallery.features, np.arange(300))
    assert np.array_equal(found[0], indices)
    np.testing.assert_allclose(found[1], expected, atol=1e-4)


@pytest.fixture(scope="module")
def settings(tiny):
    return [*(each for each in tiny if each != "trainer=cpu"), "trainer=gpu", "trainer.max_epochs=2", "report=false"]


@pytest.fixture(scope="module")
def runs(settings, lcde, tmp_path_factory):
    """Folders of two equal trainings on the GPU."""
    folders = [tmp_path_factory.mktemp("gpu") for _ in range(2)]
    for folder in folders:
        lcde("train", *settings, f"hydra.run.dir={folder}")
    return folders


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]


def test_the_same_seed_gives_the_same_weights(runs):
    first, second = map(weights, runs)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_training_on_a_gpu_learns(runs, trained):
    on_gpu, on_cpu = (json.loads((folder / "metrics.json").read_text()) for folder in (runs[0], trained[0]))
    for part, result in on_cpu.items():
        assert on_gpu[part]["pairwise"]["f_score"] > result["pairwise"]["f_score"] - 0.1


def test_training_batches_are_split_where_the_memory_does_not_suffice():
    size, model = 4096, make_model().to(CUDA)
    labels = torch.ones(size, 2, 2, K, dtype=torch.int64, device=CUDA)
    graph = DeviceGraph(torch.empty(0, D), torch.empty(0, K))
    pairs = torch.zeros(size, 2, dtype=torch.int64, device=CUDA)
    batch = Neighbourhoods(torch.randn(size, 2, K, D, device=CUDA), labels, labels[:, 0, 0, 0], pairs, graph)

    def peak():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        sum(model.training_losses(batch).values()).backward()
        return torch.cuda.max_memory_allocated() - before

    whole = peak()
    assert model.pieces == 1
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + 0.4 * whole
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(CUDA).total_memory)
    model.pieces = None
    try:
        with pytest.warns(UserWarning, match="does not suffice to train on 4096 pairs"):
            in_pieces = peak()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert model.pieces > 1
    assert in_pieces < 0.4 * whole


def test_a_checkpoint_from_a_gpu_clusters_on_a_cpu(runs, make_gallery):
    features = make_gallery(1, num_faces=200, feature_dim=64).features
    best = runs[0] / "checkpoints" / "best.ckpt"
    labels = [LCDE.from_checkpoint(best, device=device).fit_predict(features) for device in ("cuda", "cpu")]
    assert np.mean(labels[0] == labels[1]) > 0.98


def test_a_killed_training_goes_on_to_the_same_weights(runs, settings, start, lcde, tmp_path):
    killed = start("train", *settings, f"hydra.run.dir={tmp_path}").process
    while not (tmp_path / "checkpoints" / "last.ckpt").exists() and killed.is_alive():
        time.sleep(0.01)
    killed.kill()
    killed.join()
    lcde("train", f"resume={tmp_path}")
    first, second = weights(runs[0]), weights(tmp_path)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_universal_training_on_a_gpu(lcde, tmp_path):
    stream = ["dataset.num_faces=[40,150]", "dataset.parts=1", "data.validation_galleries=3", "data.nodes_per_step=40"]
    network = ["model.width=16", "model.candidates=8", "trainer.max_epochs=1", "trainer.limit_train_batches=10"]
    settings = [*stream, *network, "trainer=gpu", "report=false", "~baselines"]
    lcde("train", "experiment=universal", *settings, f"hydra.run.dir={tmp_path}")
    assert np.isfinite(json.loads((tmp_path / "metrics.json").read_text())["random0"]["pairwise"]["f_score"])
