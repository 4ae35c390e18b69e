"""train.py and eval.py as a user types them, on tiny data."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
TINY = ["dataset.num_identities={part0_train:80,part1_test:40,part2_test:60}", "model.num_layers=1", "trainer=cpu"]
TRAIN = [*TINY, "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]


def run(script: str, *overrides: str) -> subprocess.CompletedProcess:
    if script == "eval.py" and not any(override.startswith("score_cache") for override in overrides):
        overrides = *overrides, "score_cache=null"
    return subprocess.run(
        [sys.executable, str(ROOT / script), *overrides], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def succeed(script: str, *overrides: str) -> str:
    done = run(script, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("train")
    return folder, succeed("train.py", *TRAIN, f"hydra.run.dir={folder}")


def test_training_leaves_everything_the_design_names(trained):
    folder, output = trained
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics) == ["part1_test", "part2_test"]
    for part, values in metrics.items():
        labels = np.load(folder / "labels" / f"{part}.npy")
        assert labels.dtype == np.int64
        assert set(labels) == set(range(values["clusters"]))
        assert len(labels) == values["nodes"]
        assert {"precision", "recall", "f_score"} == set(values["pairwise"]) == set(values["bcubed"])
        assert {"knn", "connectivity", "edges", "pairs", "components", "centroids", "total"} == set(values["seconds"])
        assert {"components", "infomap"} == set(values["baselines"])
        assert values["peak_memory_mb"] > 0
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert "part0_train: 80" in (folder / "config.yaml").read_text()
    assert len(list((folder / "figures").glob("*.png"))) == 10
    assert "LCDE" in output
    assert "infomap" in output
    lines = output.splitlines()
    assert [line[:25] for line in lines if line.startswith("epoch")] == [
        "epoch 1 of 2: pairwise F ",
        "epoch 2 of 2: pairwise F ",
    ]
    assert all(lines)


def test_every_epoch_is_noted_with_its_own_losses(trained):
    history = torch.load(trained[0] / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"][
        "ClusteringEvaluation"
    ]
    epochs = history["history"]
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]
    assert epochs[0]["train/edge_loss_epoch"] != epochs[1]["train/edge_loss_epoch"]


def test_training_prints_no_warning(trained):
    assert "arning" not in trained[1]
    assert "deprecated" not in trained[1]


def test_eval_gives_what_the_callback_logged(trained, tmp_path):
    folder, _ = trained
    checkpoint = folder / "checkpoints" / "best.ckpt"
    succeed("eval.py", *TINY[:1], "trainer=cpu", f"checkpoint={checkpoint}", f"hydra.run.dir={tmp_path}")
    callbacks = torch.load(checkpoint, weights_only=True)["callbacks"]
    best = max(callbacks["ClusteringEvaluation"]["history"], key=lambda epoch: epoch["val/pairwise_f"])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for part, values in metrics.items():
        assert values["pairwise"]["f_score"] == best[f"val/{part}/pairwise_f"]
        assert values["bcubed"]["f_score"] == best[f"val/{part}/bcubed_f"]
        assert np.array_equal(np.load(tmp_path / "labels" / f"{part}.npy"), np.load(folder / "labels" / f"{part}.npy"))


def test_one_seed_gives_one_result_without_the_untrained_methods_too(trained, tmp_path):
    succeed("train.py", *TRAIN, "~baselines", f"hydra.run.dir={tmp_path}")
    for part in json.loads((tmp_path / "metrics.json").read_text()).values():
        assert part["baselines"] == {}
    for labels in (trained[0] / "labels").iterdir():
        assert np.array_equal(np.load(labels), np.load(tmp_path / "labels" / labels.name))


def test_training_starts_from_given_networks(trained, tmp_path):
    checkpoint = trained[0] / "checkpoints" / "best.ckpt"
    still = "model.optimizer.lr=0.0", "trainer.max_epochs=1", "+trainer.limit_train_batches=1", "~baselines"
    succeed("train.py", *TINY, *still, f"checkpoint={checkpoint}", f"hydra.run.dir={tmp_path}")
    before, after = (
        torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for folder in (trained[0], tmp_path)
    )
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if "token_head" not in name)
    other = fail("train.py", *TINY[1:], f"checkpoint={checkpoint}", "dataset.k=16", f"hydra.run.dir={tmp_path / 'a'}")
    assert "best.ckpt was trained with k=24, but dataset.k is 16; add dataset.k=24" in other


@pytest.fixture
def small_part(make_part):
    return make_part(0, 60, 16, 8)


@pytest.fixture
def ms1m(tmp_path, small_part) -> Path:
    root = tmp_path / "data"
    (root / "features").mkdir(parents=True)
    (root / "labels").mkdir()
    for name in ("part0_train", "part1_test"):
        small_part.features.tofile(root / "features" / f"{name}.bin")
        np.savetxt(root / "labels" / f"{name}.meta", small_part.labels_true, fmt="%d")
    return root


def fail(script: str, *overrides: str) -> str:
    done = run(script, *overrides)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    [sentence] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return sentence


MS1M = ["dataset=ms1m", "dataset.feature_dim=16", "dataset.k=8", "trainer=cpu"]


def test_missing_file_is_named(ms1m, tmp_path):
    (ms1m / "labels" / "part1_test.meta").unlink()
    sentence = fail("train.py", *MS1M, f"dataset.root={ms1m}", f"hydra.run.dir={tmp_path}/run")
    assert str(ms1m / "labels" / "part1_test.meta") in sentence


def test_wrong_width_is_named(ms1m, tmp_path):
    sentence = fail(
        "train.py", *MS1M, f"dataset.root={ms1m}", "dataset.feature_dim=24", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert "dataset.feature_dim=24" in sentence
    assert "16" in sentence


def test_nan_row_is_named(ms1m, tmp_path, small_part):
    features = small_part.features.copy()
    features[7, 3] = np.nan
    features.tofile(ms1m / "features" / "part1_test.bin")
    sentence = fail("train.py", *MS1M, f"dataset.root={ms1m}", f"hydra.run.dir={tmp_path}/run")
    assert "row 7" in sentence
    assert "part1_test.bin" in sentence


def test_too_large_k_is_named(ms1m, tmp_path, small_part):
    sentence = fail("train.py", *MS1M, f"dataset.root={ms1m}", "dataset.k=4000", f"hydra.run.dir={tmp_path}/run")
    assert f"dataset.k=4000 must lie between 2 and {len(small_part) - 1}" in sentence


def test_k_that_heads_do_not_divide_names_the_nearest(ms1m, tmp_path):
    sentence = fail("train.py", *MS1M, f"dataset.root={ms1m}", "dataset.k=11", f"hydra.run.dir={tmp_path}/run")
    assert "dataset.k=8" in sentence


def test_missing_checkpoint_is_named(tmp_path):
    sentence = fail("eval.py", f"checkpoint={tmp_path}/none.ckpt", f"hydra.run.dir={tmp_path}/run")
    assert f"{tmp_path}/none.ckpt" in sentence


def test_checkpoint_of_another_width_is_named(trained, ms1m, tmp_path):
    checkpoint = trained[0] / "checkpoints" / "best.ckpt"
    sentence = fail(
        "eval.py", *MS1M, f"dataset.root={ms1m}", f"checkpoint={checkpoint}", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert "feature_dim=64" in sentence


def test_a_sweep_over_thresholds_runs_the_networks_once_and_changes_no_score(trained, tmp_path):
    command = [*TINY[::2], f"checkpoint={trained[0]}/checkpoints/best.ckpt", "~baselines", "report=false"]
    cache, thresholds = tmp_path / "cache", ("0.4", "0.6", "0.8")
    swept = f"clustering.similarity_threshold={','.join(thresholds)}"
    succeed("eval.py", "-m", *command, swept, f"score_cache={cache}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert len(list(cache.glob("*.connectivity.npy"))) == 2  # one for each part
    for job, threshold in enumerate(thresholds):
        alone = tmp_path / threshold
        succeed("eval.py", *command, f"clustering.similarity_threshold={threshold}", f"hydra.run.dir={alone}")
        for part in ("part1_test", "part2_test"):
            swept, single = (
                json.loads((folder / "metrics.json").read_text())[part]
                for folder in (tmp_path / "sweep" / str(job), alone)
            )
            assert [swept[name] for name in ("pairwise", "bcubed")] == [single[name] for name in ("pairwise", "bcubed")]
    assert not (tmp_path / "sweep" / "0" / "report.html").exists()


def test_features_of_lightning_come_from_the_config(tmp_path):
    ema = ["+callbacks.ema._target_=pytorch_lightning.callbacks.EMAWeightAveraging", "+callbacks.ema.decay=0.9"]
    steps = ["trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.5"]
    succeed("train.py", *TRAIN, "~baselines", *ema, *steps, f"hydra.run.dir={tmp_path}")
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    batches = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]  # of an epoch
    assert state["global_step"] == 2 * -(-batches // 2)
    assert {value.dtype for value in state["state_dict"].values()} == {torch.float32}
    assert "averaging_state" in state
