"""Several processes do what one does, a killed run continues, and sweeps run, as a user starts them."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
LOSSES = ("train/edge_loss_step", "train/connectivity_loss_step", "train/token_loss_step")
pytestmark = pytest.mark.slow


def run(script, *arguments, cwd=ROOT):
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def succeed(script, *arguments, cwd=ROOT):
    done = run(script, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def small(tiny):
    """In bfloat16, the gradients of half a batch are rounded before they are added up."""
    precise = "model.dropout=0", "trainer.precision=32-true", "trainer.log_every_n_steps=1"
    return [*tiny, *precise, "~baselines", "report=false", "trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def one(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    succeed("train.py", *small, f"hydra.run.dir={folder}")
    return folder


def steps(folder):
    with open(folder / "csv" / "metrics.csv") as file:
        return np.array([[float(row[name]) for name in LOSSES] for row in csv.DictReader(file) if row[LOSSES[0]]])


def test_two_processes_take_the_steps_of_one(one, small, tmp_path):
    output = succeed("train.py", *small, "trainer=ddp_cpu", "data.batch_size=32", f"hydra.run.dir={tmp_path}")
    assert output.count("epoch 1 of 2: ") == 1
    assert len(steps(one)) == len(steps(tmp_path)) > 10
    assert np.abs(steps(one) - steps(tmp_path))[:10].max() < 1e-4
    assert (tmp_path / "metrics.json").is_file()


def test_two_processes_evaluate_as_one(one, small, tmp_path):
    for name, trainer in (("one", "trainer=cpu"), ("two", "trainer=ddp_cpu")):
        best = f"checkpoint={one}/checkpoints/best.ckpt"
        succeed(
            "eval.py", *small[:2], trainer, best, "report=false", "score_cache=null", f"hydra.run.dir={tmp_path / name}"
        )
    for part in ("part1_test", "part2_test", "part0_held_out"):
        labels = [np.load(tmp_path / name / "labels" / f"{part}.npy") for name in ("one", "two")]
        assert np.array_equal(*labels)


def test_a_sweep_runs_jobs_of_two_processes(small, tmp_path):
    own = ROOT / "tests" / "commands" / "own_methods"  # its YAML files reach the second process as well
    overrides = [*small, "trainer=ddp_cpu", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}"]
    succeed("train.py", "-m", f"--config-dir={own}", *overrides, "seed=0,1")
    for job in ("0", "1"):
        assert f"seed: {job}" in (tmp_path / job / "config.yaml").read_text()
        assert (tmp_path / job / "metrics.json").is_file()
    labels = [(tmp_path / job / "labels" / "part1_test.npy").read_bytes() for job in ("0", "1")]
    assert labels[0] != labels[1]
    assert (tmp_path / "sweep.csv").is_file()


def test_a_sweep_over_thresholds_runs_the_networks_once_and_reports_the_best_job(one, small, tmp_path):
    command = [
        *small[:2],
        "trainer=cpu",
        f"checkpoint={one}/checkpoints/best.ckpt",
        f"score_cache={tmp_path / 'cache'}",
    ]
    thresholds = ("0.4", "0.6", "0.8")
    swept = f"clustering.similarity_threshold={','.join(thresholds)}"
    succeed("eval.py", "-m", *command, swept, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert len(list((tmp_path / "cache").glob("*.connectivity.npy"))) == 3  # one for each part
    scores = []
    for job, threshold in enumerate(thresholds):
        alone = tmp_path / threshold
        succeed(
            "eval.py",
            *command,
            "report=false",
            f"clustering.similarity_threshold={threshold}",
            f"hydra.run.dir={alone}",
        )
        swept, single = (
            json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "sweep" / str(job), alone)
        )
        for part, values in single.items():
            assert [swept[part][name] for name in ("pairwise", "bcubed")] == [
                values[name] for name in ("pairwise", "bcubed")
            ]
        scores.append(sum(single["part0_held_out"][name]["f_score"] for name in ("pairwise", "bcubed")))
    reported = [(tmp_path / "sweep" / str(job) / "report.html").is_file() for job in range(3)]
    assert reported == [job == int(np.argmax(scores)) for job in range(3)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_run_ends_as_the_undisturbed_one(small, tmp_path):
    # The first epoch counts as the best: the last checkpoint must not depend on that.
    plain = (
        "callbacks.checkpoint._target_=pytorch_lightning.callbacks.ModelCheckpoint",
        "~callbacks.checkpoint.tolerance",
    )
    settings = [*small, "trainer.max_epochs=3", *plain, "callbacks.checkpoint.monitor=epoch"]
    settings.append("+callbacks.checkpoint.mode=min")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    succeed("train.py", *settings, f"hydra.run.dir={whole}")
    first = [sys.executable, str(ROOT / "train.py"), *settings, f"hydra.run.dir={killed}"]
    again = [sys.executable, str(ROOT / "train.py"), f"resume={killed}"]
    last = killed / "checkpoints" / "last.ckpt"
    for command, epochs in ((first, 1), (again, 2)):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if last.is_file() and torch.load(last, weights_only=True)["epoch"] + 1 >= epochs:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.05)
    log = (killed / "csv" / "metrics.csv").read_bytes()
    assert not (killed / "metrics.json").exists()
    succeed("train.py", f"resume={killed}")

    for part, values in json.loads((whole / "metrics.json").read_text()).items():
        resumed = json.loads((killed / "metrics.json").read_text())[part]
        assert all(values[name] == resumed[name] for name in ("pairwise", "bcubed", "clusters"))
    states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (whole, killed)]
    assert [state["epoch"] for state in states] == [2, 2]
    assert torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 0
    assert all(torch.equal(states[0]["state_dict"][name], value) for name, value in states[1]["state_dict"].items())
    histories = [state["callbacks"]["ClusteringEvaluation"]["history"] for state in states]
    for epoch in [*histories[0], *histories[1]]:
        assert epoch.pop("train/pairs_per_second") > 0
    assert histories[0] == histories[1]
    assert (killed / "csv" / "metrics.csv").read_bytes() == log  # each attempt logs into a folder of its own


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "last.ckpt"
    program = f"""
import os, signal, torch
from lcde.training.checkpoint_io import AtomicCheckpointIO
io = AtomicCheckpointIO()
io.save_checkpoint({{"epoch": 1}}, {str(path)!r})
class Deadly:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)
io.save_checkpoint({{"epoch": 2, "weights": torch.zeros(10**6), "then": Deadly()}}, {str(path)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert torch.load(path, weights_only=True) == {"epoch": 1}


def test_optional_packages_are_not_imported_unasked():
    code = (
        "import sys, train, eval, lcde.estimator; "
        "print({'optuna', 'submitit', 'tensorboard', 'wandb', 'infomap'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"
