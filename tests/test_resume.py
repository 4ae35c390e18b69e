"""A training run that is killed goes on as if nothing had happened."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_command_line import ROOT, TRAIN, run, succeed

# The first epoch counts as the best: the last checkpoint must not depend on that.
BEST = ["callbacks.checkpoint.monitor=epoch", "callbacks.checkpoint.mode=min"]
SMALL = [*TRAIN, "trainer.max_epochs=3", "~baselines.infomap", *BEST]


def scores(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    return {part: [values[name] for name in ("pairwise", "bcubed", "clusters")] for part, values in metrics.items()}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_run_ends_as_the_undisturbed_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    succeed("train.py", *SMALL, f"hydra.run.dir={whole}")

    first = [sys.executable, str(ROOT / "train.py"), *SMALL, f"hydra.run.dir={killed}"]
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

    assert scores(killed) == scores(whole)
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
from lcde.checkpoint_io import AtomicCheckpointIO
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


def test_what_cannot_be_resumed_is_refused(tmp_path):
    missing = run("train.py", f"resume={tmp_path}", f"hydra.run.dir={tmp_path / 'out'}")
    assert missing.returncode == 1
    assert "holds no config.yaml" in missing.stderr
    (tmp_path / "config.yaml").write_text("callbacks: {}\n")
    others = run("train.py", f"resume={tmp_path}", "seed=1", f"hydra.run.dir={tmp_path / 'out'}")
    assert others.returncode == 1
    assert "leave out seed=1" in others.stderr
