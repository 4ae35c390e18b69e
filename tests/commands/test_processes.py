"""Several processes do what one does, a killed run continues, and sweeps run, as a user starts them."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from socket import socket

import numpy as np
import pytest
import torch

from lcde.__main__ import main
from lcde.files import UNFINISHED, remove_unfinished
from lcde.models import scoring
from lcde.models.scoring import GraphScorer

ROOT = Path(__file__).parents[2]
LOSSES = ("train/edge_loss_step", "train/connectivity_loss_step", "train/token_loss_step")
SMALL_BATCH = 160  # tokens: 20 faces, 10 edges
FILES = {"rows": "rows-*", "keys": "edges"}  # of a score cache, by the name of the array that says what is scored
pytestmark = pytest.mark.slow


@pytest.fixture
def succeed(start):
    """Run ``lcde <arguments>`` in a process of its own; returns what it prints."""

    def run(*arguments):
        exit_code, output = start(*arguments).end()
        assert exit_code == 0, output
        return output

    return run


@pytest.fixture(scope="module")
def small(tiny):
    """In bfloat16, the gradients of half a batch are rounded before they are added up."""
    precise = "model.dropout=0", "trainer.precision=32-true", "trainer.log_every_n_steps=1"
    return [*tiny, *precise, "~baselines", "report=false", "trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def one(lcde, small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    lcde("train", *small, f"hydra.run.dir={folder}")
    return folder


def steps(folder, losses=LOSSES):
    with open(folder / "csv" / "metrics.csv") as file:
        return np.array([[float(row[name]) for name in losses] for row in csv.DictReader(file) if row[losses[0]]])


def test_two_processes_take_the_steps_of_one(one, small, succeed, tmp_path):
    output = succeed("train", *small, "trainer=ddp_cpu", "data.batch_size=32", f"hydra.run.dir={tmp_path}")
    assert output.count("epoch 1 of 2: ") == 1
    assert len(steps(one)) == len(steps(tmp_path)) > 10
    assert np.abs(steps(one) - steps(tmp_path))[:10].max() < 1e-4
    assert (tmp_path / "metrics.json").is_file()


LIMITED = """
import torch
from lcde.distributed import rank
from lcde.models.lcde import LCDEModel

class Limited(LCDEModel):
    def losses(self, batch, training):
        if training and rank() == 1 and len(batch.pairs) > 8:
            raise torch.OutOfMemoryError
        return super().losses(batch, training)
"""


def test_a_process_of_less_memory_takes_the_same_steps_in_pieces(one, small, tmp_path):
    (tmp_path / "limited.py").write_text(LIMITED)
    settings = ["trainer=ddp_cpu", "data.batch_size=32", "model._target_=limited.Limited"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "lcde", "train", *small, *settings, f"hydra.run.dir={tmp_path / 'two'}"]
    output = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    assert output.count("each batch is computed in 4 pieces") == 1
    assert np.abs(steps(one)[:10] - steps(tmp_path / "two")[:10]).max() < 1e-4


@pytest.mark.parametrize(
    ("peer", "loss", "size"),
    [("chen", "connectivity_loss", 32), ("star_fc", "edge_loss", 32), ("ltc", "overlap_loss", 4)],
)
def test_two_processes_train_a_peer_as_one(peer, loss, size, tiny_data, lcde, succeed, tmp_path):
    still = ["model.dropout=0"] if peer in ("chen", "ltc") else ["pairs.pairs_per_face=1"]
    precise = [*still, "trainer.precision=32-true", "trainer.log_every_n_steps=1", "~baselines", "report=false"]
    arguments = [*tiny_data, f"model={peer}", *precise, "trainer.max_epochs=1"]
    lcde("train", *arguments, "trainer=cpu", f"data.batch_size={2 * size}", f"hydra.run.dir={tmp_path / 'one'}")
    succeed("train", *arguments, "trainer=ddp_cpu", f"data.batch_size={size}", f"hydra.run.dir={tmp_path / 'two'}")
    first, second = (steps(tmp_path / name, [f"train/{loss}_step"]) for name in ("one", "two"))
    assert len(first) == len(second) > 5
    assert np.abs(first - second).max() < 1e-4
    labels = [np.load(tmp_path / name / "labels" / "part1_test.npy") for name in ("one", "two")]
    assert np.array_equal(*labels)


def test_a_sweep_over_models_brings_the_rule_of_each(tiny_data, succeed, tmp_path):
    brief = "trainer.max_epochs=1", "+trainer.limit_train_batches=2", "~baselines", "trainer=cpu"
    succeed("train", "-m", *tiny_data, *brief, "model=chen,gcn_v", f"hydra.sweep.dir={tmp_path}")
    found = [json.loads((tmp_path / job / "metrics.json").read_text())["part1_test"]["method"] for job in ("0", "1")]
    assert found == ["chen", "gcn_v"]
    with open(tmp_path / "sweep.csv") as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"chen", "gcn_v"}


def test_two_processes_evaluate_as_one(one, tiny_data, lcde, succeed, tmp_path):
    for name, run, trainer in (("one", lcde, "trainer=cpu"), ("two", succeed, "trainer=ddp_cpu")):
        best = f"checkpoint={one}/checkpoints/best.ckpt"
        run(
            *("eval", *tiny_data, trainer, best, "report=false", "score_cache=null"),
            f"hydra.run.dir={tmp_path / name}",
        )
    for part in ("part1_test", "part2_test", "part0_held_out"):
        labels = [np.load(tmp_path / name / "labels" / f"{part}.npy") for name in ("one", "two")]
        assert np.array_equal(*labels)


@pytest.mark.skipif(sys.platform == "win32", reason="torch has no rendezvous there")
def test_two_nodes_train_as_two_processes_of_one(small, start, succeed, tmp_path):
    """One machine stands for both: each node has a launcher, or an environment of SLURM's, of its own."""
    brief = [*small, "trainer.max_epochs=1", "trainer=ddp_cpu", "data.batch_size=32"]
    succeed("train", *brief, f"hydra.run.dir={tmp_path / 'one'}")
    nodes = ["trainer.devices=1", "trainer.num_nodes=2"]
    with socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    rendezvous = "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--nnodes=2", "--nproc-per-node=1"
    torchrun = [sys.executable, "-m", "torch.distributed.run", *rendezvous, str(ROOT / "train.py"), *brief, *nodes]
    running = [subprocess.Popen([*torchrun, f"hydra.run.dir={tmp_path / 'torchrun'}"], cwd=tmp_path) for _ in range(2)]
    assert [process.wait(300) for process in running] == [0, 0]

    job = {"JOB_ID": 7, "JOB_NAME": "lcde", "NTASKS": 2, "NNODES": 2, "NTASKS_PER_NODE": 1, "NODELIST": "localhost"}
    variables = {f"SLURM_{name}": str(value) for name, value in {**job, "LOCALID": 0}.items()}
    variables["MASTER_PORT"] = str(port)
    tasks = [{**os.environ, **variables, "SLURM_PROCID": node, "SLURM_NODEID": node} for node in "01"]
    command = ["train", *brief, *nodes, f"hydra.run.dir={tmp_path / 'slurm'}"]
    for exit_code, output in [process.end() for process in [start(*command, environment=task) for task in tasks]]:
        assert exit_code == 0, output

    labels = [np.load(tmp_path / name / "labels" / "part1_test.npy") for name in ("one", "torchrun", "slurm")]
    assert np.array_equal(labels[0], labels[1])
    assert np.array_equal(labels[0], labels[2])


@pytest.mark.skipif(sys.platform != "linux", reason="no limit leaves mapped files out")
def test_processes_cluster_features_that_neither_has_room_for(start, lcde, tmp_path):
    num_faces, dim, rng = 120_000, 2_048, np.random.default_rng(0)
    features = np.lib.format.open_memmap(tmp_path / "faces.npy", "w+", np.float32, (num_faces, dim))
    for first in range(0, num_faces, 8_000):
        faces = rng.standard_normal((8_000, dim), dtype=np.float32)
        faces += rng.standard_normal((1_000, dim), dtype=np.float32).repeat(8, axis=0)
        features[first : first + 8_000] = faces / np.linalg.norm(faces, axis=1, keepdims=True)
    room = int(0.45 * features.nbytes)
    face = np.arange(num_faces, dtype=np.int32)[:, None]
    np.save(tmp_path / "graph.npy", face // 8 * 8 + (face + np.arange(4, dtype=np.int32)) % 8)
    np.save(tmp_path / "some.npy", features[:400])
    np.savetxt(tmp_path / "some.txt", np.arange(400) // 8, fmt="%d")
    np.lib.format.open_memmap(tmp_path / "zeros.npy", "w+", np.float32, (num_faces, dim))  # sparse; not of unit length
    del features

    brief = "trainer=cpu", "trainer.max_epochs=1", "report=false", "~baselines", "dataset=custom", "dataset.k=4"
    some = f"dataset.train_features={tmp_path}/some.npy", f"dataset.train_labels={tmp_path}/some.txt"
    lcde("train", "model=pairwise", "model.width=8", *brief, *some, f"hydra.run.dir={tmp_path / 'train'}")
    checkpoint = f"checkpoint={tmp_path}/train/checkpoints/best.ckpt"
    command = ["eval", *brief[2:], checkpoint, f"dataset.graph={tmp_path}/graph.npy"]
    few_threads = {**os.environ, "OMP_NUM_THREADS": "1"}  # each has a stack

    def end(name, trainer, run, **settings):
        faces, folder = f"dataset.features={tmp_path}/{name}.npy", f"hydra.run.dir={tmp_path / run}"
        return start(*command, faces, folder, f"trainer={trainer}", environment=few_threads, **settings).end()

    exit_code, output = end("zeros", "cpu", "refused", room=room)
    assert exit_code == 1
    assert "zeros.npy, 120,000 faces of D=2048 with K=4, needs 0.987 GB for features and kNN graph alone" in output
    for trainer, settings in (("cpu", {}), ("ddp_cpu", {"room": room})):
        exit_code, output = end("faces", trainer, trainer, **settings)
        assert exit_code == 0, output
    one, two = (np.load(tmp_path / trainer / "labels" / "custom.npy") for trainer in ("cpu", "ddp_cpu"))
    assert np.array_equal(one, two)
    assert 1 < len(np.unique(one)) < num_faces


def test_a_sweep_runs_jobs_of_two_processes(small, succeed, tmp_path):
    own = ROOT / "tests" / "commands" / "own_methods"  # its YAML files reach the second process as well
    brief = "trainer.max_epochs=1", "+trainer.limit_train_batches=2", f"hydra.sweep.dir={tmp_path}"
    trees = "clustering.second_pass.merge_trees=null"  # with which both jobs find all people
    succeed("train", "-m", f"--config-dir={own}", *small, "trainer=ddp_cpu", *brief, trees, "seed=0,1")
    for job in ("0", "1"):
        assert f"seed: {job}" in (tmp_path / job / "config.yaml").read_text()
        assert (tmp_path / job / "metrics.json").is_file()
    labels = [(tmp_path / job / "labels" / "part1_test.npy").read_bytes() for job in ("0", "1")]
    assert labels[0] != labels[1]
    assert (tmp_path / "sweep.csv").is_file()


def test_a_sweep_over_thresholds_runs_the_networks_once_and_reports_the_best_job(one, tiny_data, lcde, tmp_path):
    command = [*tiny_data, "trainer=cpu", f"checkpoint={one}/checkpoints/best.ckpt"]
    cache, thresholds = f"score_cache={tmp_path / 'cache'}", ("0.4", "0.6", "0.8")
    swept = f"clustering.similarity_threshold={','.join(thresholds)}"
    lcde("eval", "-m", *command, cache, swept, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert len(list((tmp_path / "cache").glob("*.connectivity.npz"))) == 3  # one for each part
    scores = []
    for job, threshold in enumerate(thresholds):
        alone, setting = tmp_path / threshold, f"clustering.similarity_threshold={threshold}"
        lcde("eval", *command, cache, "report=false", setting, f"hydra.run.dir={alone}")
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
def test_a_killed_run_ends_as_the_undisturbed_one(small, start, succeed, tmp_path):
    # The first epoch counts as the best: the last checkpoint must not depend on that.
    plain = (
        "callbacks.checkpoint._target_=pytorch_lightning.callbacks.ModelCheckpoint",
        "~callbacks.checkpoint.tolerance",
    )
    brief = "trainer.max_epochs=3", "+trainer.limit_train_batches=4"
    settings = [*small, *brief, *plain, "callbacks.checkpoint.monitor=epoch"]
    settings.append("+callbacks.checkpoint.mode=min")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    succeed("train", *settings, f"hydra.run.dir={whole}")
    first, again = ["train", *settings, f"hydra.run.dir={killed}"], ["train", f"resume={killed}"]
    last = killed / "checkpoints" / "last.ckpt"
    for command, epochs in ((first, 1), (again, 2)):
        process, _ = start(*command)
        while process.is_alive():
            if last.is_file() and torch.load(last, weights_only=True, mmap=True)["epoch"] + 1 >= epochs:
                process.kill()
                process.join()
            time.sleep(0.02)
    log = (killed / "csv" / "metrics.csv").read_bytes()
    assert not (killed / "metrics.json").exists()
    left = killed / "checkpoints" / f".last.ckpt.abc{UNFINISHED}"
    left.write_bytes(b"half a checkpoint")
    succeed("train", f"resume={killed}")

    for part, values in json.loads((whole / "metrics.json").read_text()).items():
        resumed = json.loads((killed / "metrics.json").read_text())[part]
        assert all(values[name] == resumed[name] for name in ("pairwise", "bcubed", "clusters"))
    states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (whole, killed)]
    assert [state["epoch"] for state in states] == [2, 2]
    assert torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 0
    histories = [state["callbacks"]["ClusteringEvaluation"]["history"] for state in states]
    for epoch in [*histories[0], *histories[1]]:
        assert epoch.pop("train/pairs_per_second") > 0
    assert histories[0] == histories[1]
    weights = [state["state_dict"] for state in states]
    differences = {name: (weights[0][name] - value).abs().max().item() for name, value in weights[1].items()}
    assert not any(differences.values()), differences
    assert not left.exists()
    assert (killed / "csv" / "metrics.csv").read_bytes() == log  # each attempt logs into a folder of its own


def evaluate_slowly(log, arguments):
    """``lcde eval`` in chunks of one batch, with time to kill it between them."""
    score_share = GraphScorer._score_share

    def slow(self, items, advance):
        time.sleep(0.1)
        return score_share(self, items, advance)

    GraphScorer._score_share, scoring.BATCHES_PER_CHUNK = slow, 1
    scoring.TOKENS_PER_BATCH["cpu"] = SMALL_BATCH
    sys.argv = ["lcde", "eval", *arguments]
    with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        main()


def num_kept(cache):
    """How many faces and edges the files of ``cache`` hold scores of."""
    names = {**FILES, "connectivity": "connectivity"}
    return sum(len(np.load(file)[name]) for name, kind in names.items() for file in cache.glob(f"*.{kind}.npz"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("name", FILES)
def test_a_killed_evaluation_goes_on_from_its_last_chunk(name, one, tiny_data, processes, lcde, monkeypatch, tmp_path):
    """The kill comes while it scores the faces of the first part, or its edges."""
    num_scored, score_share = [], GraphScorer._score_share

    def counting(self, items, advance):
        num_scored.append(len(items))
        return score_share(self, items, advance)

    monkeypatch.setattr(GraphScorer, "_score_share", counting)
    monkeypatch.setitem(scoring.TOKENS_PER_BATCH, "cpu", SMALL_BATCH)
    settings = [*tiny_data, "trainer=cpu", f"checkpoint={one}/checkpoints/best.ckpt", "~baselines", "report=false"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    lcde("eval", *settings, f"hydra.run.dir={whole}", f"score_cache={whole / 'cache'}")
    total = sum(num_scored)

    settings += [f"hydra.run.dir={killed}", f"score_cache={killed / 'cache'}"]
    log = tmp_path / "log.txt"
    process = processes.Process(target=evaluate_slowly, args=(log, settings))
    process.start()
    while not list((killed / "cache").glob(f"*.{FILES[name]}.npz")):
        assert process.is_alive(), log.read_text()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list((killed / "cache").glob("*.connectivity.npz"))) == (name == "keys")
    kept = num_kept(killed / "cache")
    num_scored.clear()
    lcde("eval", *settings)
    assert sum(num_scored) == total - kept

    contents = [
        {file.relative_to(folder): file.read_bytes() for file in (*folder.glob("labels/*"), *folder.glob("cache/*"))}
        for folder in (whole, killed)
    ]
    assert len(contents[0]) == 3 * 4  # of each part labels, connectivity, edges and a lock
    assert contents[0] == contents[1]


class Deadly:
    """Ends the process that writes it."""

    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def save_and_die(path):
    from lcde.training.checkpoint_io import AtomicCheckpointIO

    io = AtomicCheckpointIO()
    io.save_checkpoint({"epoch": 1}, path)
    io.save_checkpoint({"epoch": 2, "weights": torch.zeros(10**6), "then": Deadly()}, path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(processes, tmp_path):
    path = tmp_path / "last.ckpt"
    process = processes.Process(target=save_and_die, args=(str(path),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert len(list(tmp_path.iterdir())) == 2
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_optional_packages_are_not_imported_unasked(tmp_path):
    code = """
import pathlib, sys
import train, eval, lcde.estimator
from hydra.core.utils import JobReturn
from pytorch_lightning.loggers import CSVLogger
from lcde.report.loggers import FinishWandb, log_results

folder = sys.argv[1]
log_results([CSVLogger(folder)], [], pathlib.Path(folder))
FinishWandb().on_job_end(None, JobReturn())
print({"optuna", "submitit", "tensorboard", "wandb", "infomap"} & {*sys.modules})
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


def test_memory_does_not_grow_with_each_new_shape_of_a_batch():
    """On a CPU with bfloat16 instructions; without bounds it grows by 0.7 MB for each of the first 1024 shapes."""
    code = """
import lcde, torch
from benchmarks.measure import peak_memory_mb

layer, x = torch.nn.Linear(88, 352, dtype=torch.bfloat16), torch.ones(1_000, 88, dtype=torch.bfloat16)
with torch.inference_mode():
    for size in range(1, 1_001):
        layer(x[:size])
        if size == 300:
            before = peak_memory_mb()
print(peak_memory_mb() - before)
"""
    command = [sys.executable, "-c", code]
    assert float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout) < 150
