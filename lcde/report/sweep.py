"""The summary of a sweep: ``sweep.csv``, ``sweep.png``, ``sweep.html``, a table, and a full report of the best job."""

import atexit
import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from lcde.evaluation.output import COLUMNS, part_title, percent, print_rows, table_row
from lcde.evaluation.published import ScoreRow
from lcde.files import write_text
from lcde.report import plots
from lcde.report.html import write_page

SHOWN = ("held-out F", "pairwise F", "BCubed F", "NMI", "clusters", "seconds")  # in the printed table and the page

UNRANKED = "No job has scores on held-out identities, and evaluation parts choose nothing: none is marked as the best."


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes
    ----------
    name : str
        Its folder, relative to the sweep's.
    settings : dict of str to str
        Value of each overridden key, as it was typed.
    parts : dict of str to dict
        By part, "held_out" and the evaluated method's `COLUMNS`, scores as fractions, None where unknown. Empty while
        the job runs and where it failed.
    """

    name: str
    settings: dict[str, str]
    parts: dict[str, dict[str, Any]]

    def mean(self, column: str, held_out: bool = False) -> float:
        """The mean of a column over evaluation parts, or over held-out parts; NaN where a part lacks it."""
        values = [part[column] for part in self.parts.values() if part["held_out"] == held_out]
        return float(np.array(values or [None], dtype=np.float64).mean())

    @property
    def score(self) -> float:
        """Mean of pairwise and BCubed F over held-out parts, by which jobs are ranked; NaN without such parts."""
        return (self.mean("pairwise_f_score", held_out=True) + self.mean("bcubed_f_score", held_out=True)) / 2


class SweepSummary(Callback):
    """Hydra callback that summarises a sweep, in the process that the user started.

    It reads everything from the jobs' folders, so it works with any launcher and any sweeper.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make sure that the sweep is summarised even if a job fails: Hydra then skips `on_multirun_end`."""
        self.folder = Path(config.hydra.sweep.dir).absolute()
        atexit.register(self.summarise)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Summarise the sweep and write the full report of its best job."""
        atexit.unregister(self.summarise)
        best = self.summarise()
        if best is not None:
            _report(self.folder / best.name)

    def summarise(self) -> Job | None:
        """Write ``sweep.csv``, ``sweep.png`` and ``sweep.html`` into the sweep's folder and print the table.

        Returns
        -------
        Job or None
            The best job on held-out identities, None where no job has any.
        """
        jobs = read_jobs(self.folder)
        if not jobs:
            return None
        ranked, rows = sorted(jobs, key=lambda job: -np.nan_to_num(job.score, nan=-1)), score_rows(jobs)
        best = None if np.isnan(ranked[0].score) else ranked[0]
        write_csv(jobs, self.folder / "sweep.csv")
        figures = plots.save_figures({"sweep": plots.sweep_scores(rows)} if rows else {}, self.folder)
        columns, lines = ["job", *varying_keys(jobs), *SHOWN], summary_lines(ranked)
        note = UNRANKED if best is None else f"Best on held-out identities: {best.name}"
        values = {"note": note, "columns": columns, "lines": lines, "best": best, "figures": figures}
        write_page(self.folder / "sweep.html", "sweep.html.j2", values)
        print_rows(columns, [[(cells, job is best) for job, cells in lines]])
        print(f"{note}\nscores in percent, means over parts; summary and a folder for each job: {self.folder}")
        return best


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
        values = json.loads(metrics.read_text(encoding="utf-8")) if finished else {}
        parts = {part: {"held_out": "held_out" in of_part, **table_row(of_part)} for part, of_part in values.items()}
        jobs.append(Job(job.relative_to(folder).as_posix(), settings, parts))
    return sorted(jobs, key=lambda job: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", job.name)])


def varying_keys(jobs: Sequence[Job]) -> list[str]:
    """The settings that are not the same in all jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.settings)
    return [key for key in keys if len({job.settings.get(key) for job in jobs}) > 1]


def score_rows(jobs: Sequence[Job]) -> list[tuple[Mapping[str, str], ScoreRow]]:
    """Varying settings ("" where a job leaves a key alone) and F-scores of each job and part that has scores."""
    rows: list[tuple[Mapping[str, str], ScoreRow]] = []
    for job in jobs:
        settings = {key: job.settings.get(key, "") for key in varying_keys(jobs)} or {"job": f"#{job.name}"}
        for part, values in job.parts.items():
            if values["pairwise_f_score"] is not None:
                scores = values["pairwise_f_score"], values["bcubed_f_score"]
                rows.append((settings, ScoreRow(part_title(part, values["held_out"]), job.name, *scores, True)))
    return rows


def write_csv(jobs: Sequence[Job], path: Path) -> None:
    """One line a job and part; a job without results has one line, with its settings alone."""
    keys = dict.fromkeys(key for job in jobs for key in job.settings)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["job", *keys, "part", "held_out", *COLUMNS], lineterminator="\n")
    writer.writeheader()
    for job in jobs:
        for part, values in (job.parts or {"": {}}).items():
            writer.writerow({"job": job.name, **job.settings, "part": part, **values})
    write_text(path, text.getvalue())


def summary_lines(jobs: Sequence[Job]) -> list[tuple[Job, list[str]]]:
    """Each job and its cells: name, varying settings, `SHOWN`."""
    lines = []
    for job in jobs:
        values = [job.settings.get(key, "") for key in varying_keys(jobs)]
        cells = [job.name, *(f"{float(value):.4g}" if plots.is_number(value) else value for value in values)]
        cells += map(percent, (job.score, *map(job.mean, ("pairwise_f_score", "bcubed_f_score", "nmi"))))
        counts = f"{job.mean('clusters'):,.0f}", f"{job.mean('seconds'):.1f}"
        cells += ["–" if cell == "nan" else cell for cell in counts] if job.parts else ["–", "no results"]
        lines.append((job, cells))
    return lines


def _report(folder: Path) -> None:
    """Write the report of the job in ``folder`` if it is one of eval; jobs of train write their own."""
    config: Any = OmegaConf.load(folder / "config.yaml")
    hydra: Any = OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra
    if "assign_to" not in config or not config.report:
        return
    overrides = [text for text in hydra.overrides.task if not text.lstrip("+~").startswith("logger")]
    own = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    command = [sys.executable, sys.argv[0], *(f"--config-dir={path}" for path in own), *overrides]
    done = subprocess.run([*command, f"hydra.run.dir={folder}"], capture_output=True, text=True)
    print(f"report of the best job: {folder / 'report.html' if done.returncode == 0 else done.stderr}")
