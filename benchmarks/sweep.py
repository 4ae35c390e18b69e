"""Twenty similarity thresholds over one checkpoint in one sweep, beside one evaluation, as a user types them.

"seconds per further job" is the time from the first job's results to the last's, divided by the 19 jobs between them;
"clustering" is what those jobs report as their own time, so the difference is what a job costs beside it.
"""

import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import ROOT
from benchmarks.measure import Case, Options, Run, peak_memory_of_children_mb
from benchmarks.pipeline import PART, run_python, trained_networks, write_part
from lcde.data.formats import read_labels
from lcde.models.weights import load_checkpoint

THRESHOLDS = [f"{threshold:.2f}" for threshold in np.linspace(0.3, 0.68, 20)]


def cases(options: Options) -> list[Case]:
    """One case: an evaluation without score cache, and the sweep."""
    checkpoint, name = trained_networks(options)
    model, folder = load_checkpoint(checkpoint).model, options.scratch / "sweep"
    root, part = options.data, "part1_test"
    if root is None:
        root, part = folder, PART
        write_part(folder, model)
    num_faces = len(read_labels(root / "labels" / f"{part}.meta"))
    data = [f"checkpoint={checkpoint.resolve()}", "dataset=ms1m", f"dataset.root={root.resolve()}"]
    data += [f"dataset.parts=[{part}]", f"dataset.feature_dim={model.feature_dim}", f"dataset.k={model.k}"]
    data += ["trainer=cpu", "~baselines", "report=false"]
    contenders = {
        "one evaluation": partial(_evaluate, folder / "run", part, [*data, "score_cache=null"]),
        f"a sweep of {len(THRESHOLDS)}": partial(_sweep, folder, part, data),
    }
    return [Case("sweep", f"eval.py, {name}", num_faces, contenders)]


def _evaluate(run: Path, part: str, overrides: list[str]) -> Callable[[], Run]:
    def job() -> Run:
        seconds = _seconds([*overrides, f"hydra.run.dir={run}"])
        return Run(seconds, peak_memory_of_children_mb(), _scores(_metrics(run)[part]))

    return job


def _sweep(folder: Path, part: str, overrides: list[str]) -> Callable[[], Run]:
    swept = ["-m", f"clustering.similarity_threshold={','.join(THRESHOLDS)}"]
    cache, sweep = folder / "cache", folder / "jobs"

    def job() -> Run:
        for old in (cache, sweep):
            shutil.rmtree(old, ignore_errors=True)
        seconds = _seconds([*swept, *overrides, f"score_cache={cache}", f"hydra.sweep.dir={sweep}"])
        jobs = [sweep / str(number) for number in range(len(THRESHOLDS))]
        best = max((_scores(_metrics(run)[part]) for run in jobs), key=lambda scores: scores["pairwise F"])
        figures = further_jobs(jobs) | {f"best {name}": value for name, value in best.items()}
        return Run(seconds, peak_memory_of_children_mb(), figures)

    return job


def further_jobs(jobs: Sequence[Path]) -> dict[str, float]:
    """Seconds per job after the first, of them clustering (all parts), and the difference; from the jobs' folders."""
    written = [(run / "metrics.json").stat().st_mtime for run in jobs]
    further = (written[-1] - written[0]) / (len(jobs) - 1)
    clustering = statistics.mean(
        sum(part["seconds"]["total"] for part in _metrics(run).values() if "seconds" in part) for run in jobs[1:]
    )
    return {"seconds per further job": further, "clustering": clustering, "beside it": further - clustering}


def _seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    done = run_python(ROOT / "eval.py", *arguments)
    if done.returncode:
        raise SystemExit(f"eval.py failed: {done.stderr}")
    return time.perf_counter() - start


def _metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def _scores(values: dict) -> dict[str, float]:
    return {"pairwise F": values["pairwise"]["f_score"], "BCubed F": values["bcubed"]["f_score"]}
