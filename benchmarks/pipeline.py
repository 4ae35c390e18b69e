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
from hydra.utils import instantiate
from rich.console import Console

from benchmarks import ROOT
from benchmarks.configs import configured
from benchmarks.measure import Case, Options, Run, peak_memory_mb, peak_memory_of_children_mb
from lcde.clustering.pipeline import LCDEClustering, timed
from lcde.data.datasets import MS1M
from lcde.data.formats import read_labels
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.models.scoring import GraphScorer
from lcde.models.weights import NetworkPair, export_published, load_checkpoint, load_published

NUM_FACES, IDENTITIES = 2_000, 300  # which have a few faces more than that
FEATURE_DIM, K = 256, 80  # as on MS1M; of networks trained here, others know theirs
TRAIN_IDENTITIES = 100
STEPS = 8  # of that training: enough for networks that do not say the same of every edge
PART = "part2_test"
EXACT = "lcde, exact"  # all labels are compared with these


def cases(options: Options) -> list[Case]:
    checkpoint, name = trained_networks(options)
    pair = load_checkpoint(checkpoint)
    folder = options.scratch / "pipeline"
    write_part(folder, pair)
    export_published(pair, *_weights(folder))

    sizes = pair.feature_dim, pair.k
    contenders: dict[str, Callable] = {
        name: partial(_ours, folder, sizes, instantiate(configured("eval", f"clustering={method}").clustering), name)
        for name, method in ((EXACT, "exact"), ("lcde, fast", "lcde"))
    }
    program = options.peer / "inference.py"
    if program.is_file():
        width = pair.lcenet.encoder.layers[0].linear1.out_features
        contenders["published program"] = partial(_theirs, folder, sizes, width, program.resolve())
    else:
        Console().print(f"pipeline: no published program to compare with, {program} does not exist; see --peer")
    return [Case("pipeline", f"files to labels, {name}", NUM_FACES, contenders)]


def trained_networks(options: Options) -> tuple[Path, str]:
    """The checkpoint that the user names, or one trained briefly, and what to call it."""
    if options.checkpoint is not None:
        return options.checkpoint, options.checkpoint.name
    checkpoint = _brief_training(options)
    return checkpoint, f"{checkpoint.name} ({STEPS} steps)"


def _brief_training(options: Options) -> Path:
    """A checkpoint of a few steps of train.py, made once and kept beside the results."""
    kept = options.results / f"d{FEATURE_DIM}k{K}.ckpt"
    if not kept.is_file():
        Console().print(f"pipeline: training networks for {STEPS} steps; name better ones with --checkpoint")
        run = options.scratch / "train"
        done = run_python(
            ROOT / "train.py",
            *_dataset(FEATURE_DIM, K, "part1_test"),
            "trainer.max_epochs=1",
            f"+trainer.limit_train_batches={STEPS}",
            "+trainer.limit_val_batches=1",
            "~baselines",
            f"hydra.run.dir={run}",
        )
        if done.returncode:
            raise SystemExit(f"train.py failed: {done.stderr}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(run / "checkpoints" / "last.ckpt", kept)
    return kept


def _dataset(feature_dim: int, k: int, part: str) -> list[str]:
    """Overrides for a part of the synthetic benchmark; no identity of `PART` is in another part."""
    identities = f"part0_train:{TRAIN_IDENTITIES},part1_test:{TRAIN_IDENTITIES},{PART}:{IDENTITIES}"
    sizes = [f"dataset.feature_dim={feature_dim}", f"dataset.k={k}"]
    return [*sizes, f"dataset.num_identities={{{identities}}}", f"dataset.parts=[{part}]"]


def write_part(folder: Path, pair: NetworkPair) -> None:
    """`NUM_FACES` synthetic faces in the layout of MS1M, with their graph."""
    _, [part] = instantiate(configured("eval", *_dataset(pair.feature_dim, pair.k, PART)).dataset).load(train=False)
    for kind in ("features", "labels"):
        (folder / kind).mkdir(parents=True)
    part.features[:NUM_FACES].tofile(folder / "features" / f"{PART}.bin")
    np.savetxt(folder / "labels" / f"{PART}.meta", part.labels_true[:NUM_FACES], fmt="%d")
    _part(folder, pair.feature_dim, pair.k)  # builds the graph and keeps it


def _part(folder: Path, feature_dim: int, k: int):
    [part] = MS1M(str(folder), k, feature_dim, None, [PART]).load(train=False)[1]
    return part


def _weights(folder: Path) -> tuple[Path, Path]:
    return folder / "LCENet.pth", folder / "PCENet.pth"


def _ours(folder: Path, sizes: tuple[int, int], method: LCDEClustering, name: str) -> Callable[[], Run]:
    nhead = configured("eval").model.nhead

    def job() -> Run:
        seconds: dict[str, float] = {}
        start = time.perf_counter()
        with timed(seconds, "reading"):
            pair = load_published(*_weights(folder), nhead)
            part = _part(folder, *sizes)
        scorer = GraphScorer(pair.lcenet, pair.pcenet, part.features, part.indices, method.precision)
        clustering = method(part.features, part.indices, part.similarities, scorer)
        total = time.perf_counter() - start
        figures = seconds | clustering.seconds | _scores(folder, clustering.labels, name)
        return Run(total, peak_memory_mb(), figures)

    return job


def _theirs(folder: Path, sizes: tuple[int, int], dim_feedforward: int, program: Path) -> Callable[[], Run]:
    """The published program, called as its README says."""
    feature_dim, k = sizes
    lce_path, pce_path = _weights(folder)
    arguments = {
        "dataset_name": "MS-Celeb-1M",
        "feature_dim": feature_dim,
        "k": k,
        "dim_feedforward": dim_feedforward,
        "nhid": dim_feedforward,
        "feat_path": folder / "features" / f"{PART}.bin",
        "label_path": folder / "labels" / f"{PART}.meta",
        "knn_graph_path": folder / "knns" / PART / f"faiss_k_{k}.npz",
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
    alike = exact.counts[(exact.counts == exact.identity_sizes) & (exact.counts == exact.cluster_sizes)]
    return {
        "pairwise F": pairwise(truth).f_score,
        "BCubed F": bcubed(truth).f_score,
        "pairwise F to exact": pairwise(exact).f_score,
        "BCubed F to exact": bcubed(exact).f_score,
        "faces not clustered as by exact": float(len(labels) - alike.sum()),
    }
