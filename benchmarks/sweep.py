"""Twenty similarity thresholds over one checkpoint in one sweep, beside one evaluation, as a user types them."""

import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import ROOT
from benchmarks.measure import Case, Options, Run, peak_memory_of_children_mb
from benchmarks.pipeline import NUM_FACES, PART, run_python, trained_networks, write_part
from lcde.models.weights import load_checkpoint

THRESHOLDS = [f"{threshold:.2f}" for threshold in np.linspace(0.3, 0.68, 20)]


def cases(options: Options) -> list[Case]:
    checkpoint, name = trained_networks(options)
    pair, folder = load_checkpoint(checkpoint), options.scratch / "sweep"
    write_part(folder, pair)
    data = [f"checkpoint={checkpoint.resolve()}", "dataset=ms1m", f"dataset.root={folder}", f"dataset.parts=[{PART}]"]
    data += [f"dataset.feature_dim={pair.feature_dim}", f"dataset.k={pair.k}", "trainer=cpu", "~baselines"]
    contenders = {
        "one evaluation": partial(_evaluate, folder, [*data, "score_cache=null"]),
        "a sweep of 20": partial(_sweep, folder, data),
    }
    return [Case("sweep", f"eval.py, {name}", NUM_FACES, contenders)]


def _evaluate(folder: Path, overrides: list[str]) -> Callable[[], Run]:
    run = folder / "run"

    def job() -> Run:
        return Run(_seconds([*overrides, f"hydra.run.dir={run}"]), peak_memory_of_children_mb(), _scores(run))

    return job


def _sweep(folder: Path, overrides: list[str]) -> Callable[[], Run]:
    swept = ["-m", f"clustering.similarity_threshold={','.join(THRESHOLDS)}", "report=false"]
    cache, jobs = folder / "cache", folder / "jobs"

    def job() -> Run:
        shutil.rmtree(cache, ignore_errors=True)
        seconds = _seconds([*swept, *overrides, f"score_cache={cache}", f"hydra.sweep.dir={jobs}"])
        best = max((_scores(jobs / str(number)) for number in range(len(THRESHOLDS))), key=lambda f: f["pairwise F"])
        return Run(seconds, peak_memory_of_children_mb(), {"best " + name: value for name, value in best.items()})

    return job


def _seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    done = run_python(ROOT / "eval.py", *arguments)
    if done.returncode:
        raise SystemExit(f"eval.py failed: {done.stderr}")
    return time.perf_counter() - start


def _scores(run: Path) -> dict[str, float]:
    scores = json.loads((run / "metrics.json").read_text())[PART]
    return {"pairwise F": scores["pairwise"]["f_score"], "BCubed F": scores["bcubed"]["f_score"]}
