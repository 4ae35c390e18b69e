"""A sweep as a whole: one kNN graph for all its K before the jobs, ``sweep.csv``, a table and ``sweep.png`` after."""

import atexit
import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.table import Table

from lcde import plots
from lcde.data.formats import write_atomically
from lcde.report import console

GRAPH_K = "LCDE_GRAPH_K"  # conf/dataset/ reads it
COLUMNS = (
    *(f"{measure}_{value}" for measure in ("pairwise", "bcubed") for value in ("precision", "recall", "f_score")),
    *("nmi", "clusters", "seconds"),
)


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    name:      its folder, relative to the sweep's
    settings:  the value of each overridden key, as it was typed
    parts:     by part, the value of each of `COLUMNS`, scores (fractions) only where identities are known; empty while
        the job runs and where it failed
    """

    name: str
    settings: dict[str, str]
    parts: dict[str, dict[str, float]]

    def mean(self, column: str) -> float:
        """The mean of a column over parts, NaN where a part lacks it."""
        return float(np.mean([part.get(column, np.nan) for part in self.parts.values()] or np.nan))


class SweepSummary(Callback):
    """Hydra calls it before the first job of a sweep and after the last, in the process that the user started.

    All that it tells it reads from the jobs' folders, so any launcher and any sweeper will do.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        swept = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        graph_k = largest_k([*swept, *config.hydra.overrides.task])
        if graph_k is not None:
            os.environ[GRAPH_K] = str(graph_k)
        self.folder = Path(config.hydra.sweep.dir).absolute()
        atexit.register(self.summarise)  # where a job failed, Hydra does not get to on_multirun_end

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        atexit.unregister(self.summarise)
        os.environ.pop(GRAPH_K, None)
        self.summarise()

    def summarise(self) -> None:
        """Write ``sweep.csv`` and ``sweep.png`` into the sweep's folder and print the table."""
        jobs = read_jobs(self.folder)
        if not jobs:
            return
        write_csv(jobs, self.folder / "sweep.csv")
        console().print(summary_table(jobs))
        settings = varying_settings(jobs)
        rows = [
            (settings[job.name] or {"job": f"#{job.name}"}, part, values["pairwise_f_score"], values["bcubed_f_score"])
            for job in jobs
            for part, values in job.parts.items()
            if "pairwise_f_score" in values
        ]
        if rows:
            plots.save_figures({"sweep": plots.sweep_scores(rows)}, self.folder)
        print(f"summary and a folder for each job: {self.folder}")


def largest_k(overrides: Sequence[str]) -> int | None:
    """The largest of the values of ``dataset.k`` that a sweep with these ``overrides`` takes, None if it has one K."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    override = {entry.key_or_group: entry for entry in parsed}.get("dataset.k")  # the last one counts
    if override is None or not override.is_sweep_override():
        return None
    if override.is_interval_sweep():  # of a search
        return int(override.value().end)
    return max(int(k) for k in override.sweep_iterator())


def read_jobs(folder: Path) -> list[Job]:
    """The jobs that have a folder under ``folder``, in the order of their names, numbers in them by value."""
    jobs = []
    for file in folder.glob("**/.hydra/overrides.yaml"):
        job = file.parents[1]
        overrides = OverridesParser.create().parse_overrides(list(OmegaConf.load(file)))
        settings = {entry.get_key_element(): entry.get_value_element_as_str() for entry in overrides}
        metrics = job / "metrics.json"
        # A job writes its overrides when it starts: older metrics are those of an earlier sweep in this folder.
        finished = metrics.is_file() and metrics.stat().st_mtime >= file.stat().st_mtime
        name = job.relative_to(folder).as_posix()
        parts = json.loads(metrics.read_text()) if finished else {}
        jobs.append(Job(name, settings, {part: _columns(values) for part, values in parts.items()}))
    return sorted(jobs, key=lambda job: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", job.name)])


def varying_settings(jobs: Sequence[Job]) -> dict[str, dict[str, str]]:
    """By the name of each job, the settings that are not the same in all jobs; "" where it leaves a key alone."""
    keys = dict.fromkeys(key for job in jobs for key in job.settings)
    varying = [key for key in keys if len({job.settings.get(key) for job in jobs}) > 1]
    return {job.name: {key: job.settings.get(key, "") for key in varying} for job in jobs}


def write_csv(jobs: Sequence[Job], path: Path) -> None:
    """One line a job and part; a job without results has one line, with its settings alone."""
    keys = dict.fromkeys(key for job in jobs for key in job.settings)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["job", *keys, "part", *COLUMNS], lineterminator="\n")
    writer.writeheader()
    for job in jobs:
        for part, values in (job.parts or {"": {}}).items():
            writer.writerow({"job": job.name, **job.settings, "part": part, **values})
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def summary_table(jobs: Sequence[Job]) -> Table:
    """One line a job, the best mean pairwise F first and in bold, those without labels or results last."""
    settings = varying_settings(jobs)
    table = Table(title="Sweep (scores in percent, means over parts)")
    for column in ("job", *settings[jobs[0].name], "pairwise F", "BCubed F", "NMI", "clusters", "seconds"):
        table.add_column(column, justify="right")
    scores = {job.name: job.mean("pairwise_f_score") for job in jobs}
    best = np.nanmax([-1, *scores.values()])
    for job in sorted(jobs, key=lambda job: (not job.parts, np.isnan(scores[job.name]), -scores[job.name])):
        means = [job.mean(column) for column in ("pairwise_f_score", "bcubed_f_score", "nmi")]
        cells = ["–" if np.isnan(mean) else f"{100 * mean:.2f}" for mean in means]
        cells += [f"{job.mean('clusters'):,.0f}", f"{job.mean('seconds'):.1f}"] if job.parts else ["–", "no results"]
        values = [f"{float(value):.4g}" if plots.is_number(value) else value for value in settings[job.name].values()]
        table.add_row(job.name, *map(escape, values), *cells, style="bold" if scores[job.name] == best else None)
    return table


def _columns(values: Mapping[str, Any]) -> dict[str, float]:
    """One part of ``metrics.json`` as `COLUMNS` of it that there are."""
    scores = {
        f"{measure}_{key}": score
        for measure in ("pairwise", "bcubed")
        for key, score in values.get(measure, {}).items()
    }
    nmi = {"nmi": values["nmi"]} if "nmi" in values else {}
    return {**scores, **nmi, "clusters": values["clusters"], "seconds": values["seconds"]["total"]}
