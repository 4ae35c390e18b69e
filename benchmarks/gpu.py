"""What a GPU gives, within five minutes: ``python -m benchmarks gpu``.

In this order: the tests that need a GPU, the peak of a matrix product, the share of it that both networks reach, the
kNN graph, training steps, and clustering with the networks so trained. Each result is written as it comes. Without a
GPU the same runs at a tiny size, which shows that it works.
"""

import argparse
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from rich.console import Console

from benchmarks import ROOT
from benchmarks.graphs import identity_features, labelings
from benchmarks.measure import machine, peak_memory_mb
from benchmarks.networks import FEATURE_DIM, K, peak_rate, prepare_scores
from lcde.configuration import build, compose_config
from lcde.data.datasets import Parts
from lcde.data.gallery import Gallery
from lcde.data.knn import build_gallery
from lcde.data.search import recall
from lcde.files import write_text
from lcde.methods.method import Method
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.models.base import Model
from lcde.progress import track

PART0, PART1 = 576_494, 584_013  # faces of MS1M's parts
WARM_UP = 0.2  # of the training steps
COMPARED = 100  # faces whose neighbours are compared with those by brute force

Figures = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes
    ----------
    faces : int
        That are clustered.
    scored : int
        Faces, and edges, whose scores tell the networks' share of the peak.
    train_faces, batch_size, steps : int
        Of the training.
    """

    faces: int
    scored: int
    train_faces: int
    batch_size: int
    steps: int


SIZES = {"cuda": Size(PART1, 65_536, 60_000, 512, 110), "cpu": Size(2_000, 400, 1_500, 16, 5)}


def main(arguments: Sequence[str]) -> None:
    """Run all steps, print and write the figures of each; end with an error where one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    size = SIZES["cuda" if torch.cuda.is_available() else "cpu"]
    parser.add_argument("--faces", type=int, default=size.faces, help="that are clustered (%(default)s)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    described = machine()
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    console, failed = Console(soft_wrap=True), []
    path = options.results / f"gpu-{str(described['date'])[:19].replace(':', '-')}.json"
    console.print(f"{described.get('gpu', 'no GPU')}, torch {described['torch']}; results: {path}")
    steps, results = Steps(replace(size, faces=options.faces)), {}
    for step in track((steps.tests, steps.peak, steps.networks, steps.knn, steps.training, steps.labels), "steps"):
        name, start = step.__name__, time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            results[name] = step()
        except Exception as error:  # the other steps may tell why
            failed.append(name)
            console.print(f"{name} failed: {error}", markup=False)
            continue
        memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0
        results[name] |= {"GB of the GPU": memory, "GB so far": peak_memory_mb() / 2**10}
        results[name]["seconds of the step"] = time.perf_counter() - start
        text = json.dumps({"machine": described, "faces": options.faces, "results": results}, indent=1) + "\n"
        write_text(path, text)
        console.print(
            f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in results[name].items()), markup=False
        )
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


class Steps:
    """The steps; what one leaves, the next take."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.gallery: Gallery | None = None
        self.model: Model | None = None

    def tests(self) -> Figures:
        """Tests that need a GPU; those that are skipped are counted."""
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout[-10_000:] + done.stderr[-2_000:])
        return {name: float(count) for count, name in re.findall(r"(\d+) (passed|skipped)", done.stdout)}

    def peak(self) -> Figures:
        """Operations of a matrix product a second."""
        dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
        return {f"TFLOP/s, {name}": peak_rate(dtype, self.device) / 1e12 for name, dtype in dtypes.items()}

    def networks(self) -> Figures:
        """Both networks at the published size, in the fastest precision."""
        figures = {}
        for what in ("connectivity", "edge probability"):
            job = prepare_scores(what, self.size.scored, "auto")
            job()  # warms up
            run = job()
            figures[f"{what}, per second"] = self.size.scored / run.seconds
            figures |= {f"{what}, {name}": value for name, value in run.figures.items()}
        return figures

    def knn(self) -> Figures:
        """The kNN graph."""
        labels = labelings(self.size.faces, 0)[0]
        features = identity_features(labels, FEATURE_DIM, 0)
        self.gallery = build_gallery("synthetic", features, labels, K, held_out=False)
        seconds = self.gallery.knn_seconds
        rows = np.linspace(0, len(features) - 1, COMPARED).astype(np.int64)
        expected = np.argpartition(-(features[rows] @ features.T), K, axis=1)[:, :K]
        rate = 2 * len(features) ** 2 * FEATURE_DIM / seconds
        found = recall(self.gallery.graph.indices[rows], expected)
        return {"seconds": seconds, "TFLOP/s": rate / 1e12, "recall": found}

    def training(self) -> Figures:
        """Training steps of both networks at the published size."""
        labels = labelings(self.size.train_faces, 1)[0]
        faces = Faces(build_gallery("part0", identity_features(labels, FEATURE_DIM, 1), labels, K, held_out=False))
        sizes = [f"dataset.feature_dim={FEATURE_DIM}", f"dataset.k={K}", f"data.batch_size={self.size.batch_size}"]
        config = compose_config("train", [*sizes, "trainer.default_root_dir=null"])
        torch.manual_seed(config.seed)
        self.model, clock = build(config.model), Clock(round(WARM_UP * self.size.steps), self.size.steps - 1)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = build(config.trainer, max_epochs=1, limit_train_batches=self.size.steps, callbacks=[clock], **quiet)
        trainer.fit(self.model, build(config.data)(dataset=faces))
        self.model.to(self.device)
        (first, start), (last, end) = clock.times
        rate = (last - first) * self.size.batch_size / (end - start)
        epoch = PART0 * sum(config.pairs[kind] for kind in ("density", "uncertain", "near"))
        return {"pairs per second": rate, "minutes an epoch of part 0": epoch / rate / 60}

    def labels(self) -> Figures:
        """From features to labels: the kNN graph of before, then all stages, in the fastest precision."""
        assert self.gallery is not None and self.model is not None
        start = time.perf_counter()
        rule = build(compose_config("eval", ["clustering=lcde"]).clustering)
        clustering = Method("lcde", rule, self.model).cluster(self.gallery)
        seconds = time.perf_counter() - start
        assert clustering is not None and self.gallery.labels_true is not None
        table, edges = Contingency.of(self.gallery.labels_true, clustering.labels), clustering.details.edge_probability
        assert edges is not None
        stages = {"kNN": self.gallery.knn_seconds, **clustering.seconds}
        return {
            "seconds": self.gallery.knn_seconds + seconds,
            **{f"seconds, {name}": value for name, value in stages.items()},
            "edges asked per face": float(np.isfinite(edges).mean()),
            "pairwise F": pairwise(table).f_score,
            "BCubed F": bcubed(table).f_score,
        }


@dataclass(frozen=True)
class Faces:
    """A data set of one training part without held-out identities."""

    gallery: Gallery
    k: int = K
    feature_dim: int = FEATURE_DIM

    def load(self, train: bool) -> Parts:
        """The part."""
        return Parts(self.gallery, None, [])


class Clock(Callback):
    """When two training steps ended, with all that the GPU does for them."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.times = steps, []

    def on_train_batch_end(self, trainer: Trainer, module: object, outputs: object, batch: object, step: int) -> None:
        """Record the time of the steps wanted."""
        if step in self.steps:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append((step, time.perf_counter()))
