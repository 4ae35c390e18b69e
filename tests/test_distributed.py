"""Two processes do what one does: as a user runs them, with gloo on a CPU."""

import csv
from pathlib import Path

import numpy as np
import pytest
from test_command_line import TRAIN, succeed

# In bfloat16, the gradients of half a batch are rounded before they are added up.
SMALL = [*TRAIN, "model.dropout=0", "trainer.precision=32-true", "~baselines.infomap"]
LOSSES = ("train/edge_loss_step", "train/connectivity_loss_step", "train/token_loss_step")


def steps(folder: Path) -> np.ndarray:
    with open(folder / "csv" / "metrics.csv") as file:
        rows = [[float(row[name]) for name in LOSSES] for row in csv.DictReader(file) if row[LOSSES[0]]]
    return np.array(rows)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    succeed("train.py", *SMALL, f"hydra.run.dir={folder}")
    return folder


def test_training_takes_the_steps_of_one_process_with_the_same_global_batch(one, tmp_path):
    output = succeed(
        "train.py", *SMALL, "trainer=ddp_cpu", "trainer.max_epochs=2", "data.batch_size=32", f"hydra.run.dir={tmp_path}"
    )
    assert output.count("epoch 1 of 2: ") == 1
    assert len(steps(one)) == len(steps(tmp_path)) > 20
    assert np.abs(steps(one) - steps(tmp_path))[:20].max() < 1e-4
    assert (tmp_path / "metrics.json").is_file()


def test_evaluation_gives_identical_labels(one, tmp_path):
    for name, overrides in (("one", ["trainer=cpu"]), ("two", ["trainer=ddp_cpu"])):
        best = f"checkpoint={one}/checkpoints/best.ckpt"
        succeed("eval.py", SMALL[0], *overrides, best, "~baselines.infomap", f"hydra.run.dir={tmp_path / name}")
    for part in ("part1_test", "part2_test"):
        labels = [np.load(tmp_path / name / "labels" / f"{part}.npy") for name in ("one", "two")]
        assert np.array_equal(*labels)


def test_a_sweep_runs_jobs_of_two_processes(tmp_path):
    overrides = [*SMALL, "trainer=ddp_cpu", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}"]
    succeed("train.py", "-m", *overrides, "seed=0,1")
    for job in ("0", "1"):
        assert f"seed: {job}" in (tmp_path / job / "config.yaml").read_text()
        assert (tmp_path / job / "metrics.json").is_file()
    assert (tmp_path / "0" / "labels" / "part1_test.npy").read_bytes() != (
        tmp_path / "1" / "labels" / "part1_test.npy"
    ).read_bytes()
