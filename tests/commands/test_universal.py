"""The universal model is trained on random galleries and clusters embeddings of any size."""

import json

import numpy as np
import pytest
import torch

from lcde import LCDE

pytestmark = pytest.mark.slow

STREAM = ["dataset.num_faces=[40,150]", "dataset.parts=1", "data.validation_galleries=3", "data.nodes_per_step=40"]
NETWORK = ["model.width=16", "model.candidates=8", "trainer=cpu", "report=false", "~baselines"]


EPOCHS = ["trainer.max_epochs=2", "trainer.limit_train_batches=15"]


@pytest.fixture(scope="module")
def run(lcde, tmp_path_factory):
    folder = tmp_path_factory.mktemp("universal")
    lcde("train", "experiment=universal", *STREAM, *NETWORK, *EPOCHS, f"hydra.run.dir={folder}")
    return folder


def test_training_scores_random_galleries_and_keeps_a_checkpoint(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics) == ["random0", "random_held_out"]
    assert metrics["random_held_out"]["held_out"]
    assert (run / "checkpoints" / "best.ckpt").is_file()
    logged = next((run / "csv").glob("metrics.csv")).read_text()
    assert "val/merge_loss" in logged


def test_the_same_seed_gives_the_same_weights(run, lcde, tmp_path):
    lcde("train", "experiment=universal", *STREAM, *NETWORK, *EPOCHS, f"hydra.run.dir={tmp_path}")
    first, second = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for folder in (run, tmp_path)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_its_checkpoint_clusters_embeddings_of_another_width_and_k(run, lcde, tmp_path):
    best = f"checkpoint={run}/checkpoints/best.ckpt"
    small = "dataset.num_identities={part0_train:60,part1_test:40,part2_test:50}", "dataset.parts=[part1_test]"
    for k in (8, 20):  # no other network is needed
        lcde("eval", *small, f"dataset.k={k}", "trainer=cpu", best, *NETWORK[-2:], f"hydra.run.dir={tmp_path}/{k}")
        metrics = json.loads((tmp_path / str(k) / "metrics.json").read_text())["part1_test"]
        assert metrics["method"] == "universal"
        assert metrics["pairwise"]["precision"] > 0.2
    with pytest.raises(SystemExit, match="the model gives no connectivity of faces; choose another clustering=…"):
        lcde("eval", *small, best, "clustering=lcde", *NETWORK[-2:], f"hydra.run.dir={tmp_path}/lcde")


def test_the_estimator_takes_it(run, make_gallery):
    gallery = make_gallery(0, num_faces=60, feature_dim=16)
    estimator = LCDE.from_checkpoint(run / "checkpoints" / "best.ckpt")
    assert estimator.k == 80
    labels = estimator.fit_predict(gallery.features)
    assert np.array_equal(labels, estimator.fit_predict(gallery.features))
    assert np.array_equal(estimator.assign(gallery.features[:3]), labels[:3])  # copies join their clusters
