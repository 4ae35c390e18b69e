"""From files of features and of a kNN graph to labels, beside the published program on the same files and weights.

Both sides are timed from reading weights, features, labels and graph to the last label, without the start of Python
and without scores: the project inside its process, the published program by its own clock. Memory is of the whole
process on both sides.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks import ROOT
from benchmarks.measure import Case, Options, Run, peak_memory_mb, peak_memory_of_children_mb
from lcde.configuration import build, compose_config
from lcde.data.datasets import MS1M
from lcde.data.formats import read_labels
from lcde.data.gallery import Gallery
from lcde.methods.method import Method, timed
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.models.lcde import LCDEModel
from lcde.models.weights import export_published, load_checkpoint, load_published

NUM_FACES, IDENTITIES = 2_000, 300  # the identities have a few faces more than that
FEATURE_DIM, K = 256, 80  # as on MS1M; of networks trained here, a checkpoint has its own
TRAIN_IDENTITIES = 100
STEPS = 8  # of that training: enough for networks that give different edges different probabilities
PART = "part2_test"
RULES = ("exact", "lcde")
EXACT = "lcde, clustering=exact"  # all labels are compared with these


def cases(options: Options) -> list[Case]:
    """One case: both rules, and the published program if it is there."""
    checkpoint, name = trained_networks(options)
    model = load_checkpoint(checkpoint).model
    folder = options.scratch / "pipeline"
    write_part(folder, model)
    export_published(model, *_weights(folder))

    contenders: dict[str, Callable] = {
        f"lcde, clustering={rule}": partial(_ours, folder, model.nhead, rule) for rule in RULES
    }
    program = options.peer / "inference.py"
    if program.is_file():
        sizes = {"feature_dim": model.feature_dim, "k": model.k, "dim_feedforward": model.widths[0]}
        contenders["published program"] = partial(_theirs, folder, sizes, program.resolve())
    else:
        Console().print(f"pipeline: no published program to compare with, {program} does not exist; see --peer")
    return [Case("pipeline", f"files to labels, {name}", NUM_FACES, contenders)]


def trained_networks(options: Options) -> tuple[Path, str]:
    """The checkpoint of ``--checkpoint``, or one trained briefly, and its name for the table."""
    if options.checkpoint is not None:
        return options.checkpoint, options.checkpoint.name
    checkpoint = _brief_training(options)
    return checkpoint, f"{checkpoint.name} ({STEPS} steps)"


def _brief_training(options: Options) -> Path:
    """A checkpoint of a few steps of train.py, made once and kept beside the results."""
    kept = options.results / f"d{FEATURE_DIM}k{K}.ckpt"
    if not kept.is_file():
        Console().print(f"training networks for {STEPS} steps; name better ones with --checkpoint")
        run = options.scratch / "train"
        done = run_python(
            ROOT / "train.py",
            *_dataset(FEATURE_DIM, K, "part1_test"),
            "trainer.max_epochs=1",
            f"+trainer.limit_train_batches={STEPS}",
            "+trainer.limit_val_batches=1",
            "~baselines",
            "report=false",
            f"hydra.run.dir={run}",
        )
        if done.returncode:
            raise SystemExit(f"train.py failed: {done.stderr}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(run / "checkpoints" / "last.ckpt", kept)
    return kept


def _dataset(feature_dim: int, k: int, part: str) -> list[str]:
    """Overrides for one part of the synthetic benchmark; no identity of `PART` is in another part."""
    identities = f"part0_train:{TRAIN_IDENTITIES},part1_test:{TRAIN_IDENTITIES},{PART}:{IDENTITIES}"
    sizes = [f"dataset.feature_dim={feature_dim}", f"dataset.k={k}", f"dataset.held_out_identities={TRAIN_IDENTITIES}"]
    return [*sizes, f"dataset.num_identities={{{identities}}}", f"dataset.parts=[{part}]"]


def write_part(folder: Path, model: LCDEModel) -> None:
    """Write `NUM_FACES` synthetic faces of the sizes of ``model`` in MS1M's layout, with their graph."""
    dataset = build(compose_config("eval", _dataset(model.feature_dim, model.k, PART)).dataset)
    [gallery] = dataset.load(train=False).evaluation
    for kind in ("features", "labels"):
        (folder / kind).mkdir(parents=True)
    gallery.features[:NUM_FACES].tofile(folder / "features" / f"{PART}.bin")
    np.savetxt(folder / "labels" / f"{PART}.meta", gallery.labels_true[:NUM_FACES], fmt="%d")
    _read(folder, model)  # builds and stores the graph


def _read(folder: Path, model: LCDEModel) -> Gallery:
    return MS1M(str(folder), model.k, model.feature_dim, None, [PART]).load(train=False).evaluation[0]


def _weights(folder: Path) -> tuple[Path, Path]:
    return folder / "LCENet.pth", folder / "PCENet.pth"


def _ours(folder: Path, nhead: int, rule: str) -> Callable[[], Run]:
    configured = build(compose_config("eval", [f"clustering={rule}"]).clustering)

    def job() -> Run:
        seconds: dict[str, float] = {}
        start = time.perf_counter()
        with timed(seconds, "reading"):
            model = load_published(*_weights(folder), nhead)
            gallery = _read(folder, model)
        clustering = Method(rule, configured, model).cluster(gallery)
        total = time.perf_counter() - start
        figures = seconds | clustering.seconds | _scores(folder, clustering.labels, f"lcde, clustering={rule}")
        return Run(total, peak_memory_mb(), figures)

    return job


def _theirs(folder: Path, sizes: dict[str, int], program: Path) -> Callable[[], Run]:
    """The published program, called as its README says."""
    lce_path, pce_path = _weights(folder)
    arguments = {
        "dataset_name": "MS-Celeb-1M",
        **sizes,
        "nhid": sizes["dim_feedforward"],
        "feat_path": folder / "features" / f"{PART}.bin",
        "label_path": folder / "labels" / f"{PART}.meta",
        "knn_graph_path": folder / "knns" / PART / f"faiss_k_{sizes['k']}.npz",
        "lce_path": lce_path,
        "pce_path": pce_path,
        "batch_size_lce": 256,
        "batch_size_pce": 128,
        "dump": folder / "dump.npz",
    }

    def job() -> Run:
        start = time.perf_counter()
        done = run_python(program, *(f"--{key}={value}" for key, value in arguments.items()))
        whole = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{program} failed: {done.stderr}")
        reached = {stage: float(value) for stage, value in re.findall(r"\[stage\] (\w+) ([\d.]+)", done.stdout)}
        reading = sum(map(float, re.findall(r"\[Time\] read.+ consumes ([\d.]+)", done.stdout)))
        figures = {
            "reading": reading,
            "LCENet": reached["lce"] - reading,  # with its weights
            "edges, PCENet, clusters": reached["clusters"] - reached["lce"],
            "whole process": whole,
        }
        with np.load(folder / "dump.npz") as dump:
            figures |= _scores(folder, dump["labels"], "published program")
        return Run(reached["clusters"], peak_memory_of_children_mb(), figures)

    return job


def run_python(program: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run a Python program, which leaves no byte code in its folder."""
    return subprocess.run([sys.executable, "-B", str(program), *arguments], capture_output=True, text=True)


def _scores(folder: Path, labels: np.ndarray, name: str) -> dict[str, float]:
    """F-scores of ``labels`` (N,), and how they agree with those of `EXACT`, which ran before."""
    np.save(folder / f"{name}.npy", labels)
    truth = Contingency.of(read_labels(folder / "labels" / f"{PART}.meta"), labels)
    exact = Contingency.of(np.load(folder / f"{EXACT}.npy"), labels)
    same = exact.counts[(exact.counts == exact.identity_sizes) & (exact.counts == exact.cluster_sizes)]
    return {
        "pairwise F": pairwise(truth).f_score,
        "BCubed F": bcubed(truth).f_score,
        "pairwise F to exact": pairwise(exact).f_score,
        "BCubed F to exact": bcubed(exact).f_score,
        "faces not clustered as by exact": float(len(labels) - same.sum()),
    }
