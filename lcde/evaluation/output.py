"""What an evaluation prints and writes: tables, ``metrics.json`` and labels."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lcde.clustering.components import label_noise
from lcde.evaluation.published import with_published
from lcde.evaluation.results import Result
from lcde.files import write_atomically, write_text

SCORES = [f"{measure}_{value}" for measure in ("pairwise", "bcubed") for value in ("precision", "recall", "f_score")]
COLUMNS = (*SCORES, "nmi", "clusters", "seconds")
Row = tuple[Sequence[str], bool]  # the cells of a printed table, and whether they are bold


def by_part(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of each part: held-out parts after the others, baselines after the evaluated methods."""
    parts: dict[str, list[Result]] = {result.part: [] for result in sorted(results, key=lambda r: r.held_out)}
    for result in sorted(results, key=lambda result: result.baseline):
        parts[result.part].append(result)
    return parts


def part_title(part: str, held_out: bool) -> str:
    """The part's name, marked if its identities are held out and the name does not say so."""
    return f"{part} (held out)" if held_out and not part.endswith("held_out") else part


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as a percentage, a dash where it is unknown (None or NaN)."""
    return "–" if value is None or np.isnan(value) else f"{100 * value:.{digits}f}"


def print_rows(columns: Sequence[str], groups: Iterable[Sequence[Row]], title: str | None = None) -> None:
    """Print a table.

    Parameters
    ----------
    columns : sequence of str
        Columns of names are aligned to the left, those of numbers to the right.
    groups : sequences of Row
        A line separates them.
    title : str, optional
    """
    names = "part", "method", "source"
    table = Table(title=title and escape(title))
    for name in columns:
        table.add_column(escape(name), justify="left" if name in names else "right", overflow="fold")
    for rows in groups:
        for cells, bold in rows:
            table.add_row(*map(escape, cells), style="bold" if bold else None)
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 140).print(table)  # a file has no width


def print_table(results: Sequence[Result]) -> None:
    """Print one line per part and method: precision / recall / F in percent, clusters and seconds."""
    columns = "part", "method", "pairwise", "BCubed", "NMI", "clusters", "seconds"
    groups = [[(_cells(result), not result.baseline) for result in of_part] for of_part in by_part(results).values()]
    print_rows(columns, groups, "Face clustering (percent: precision / recall / F)")


def _cells(result: Result) -> list[str]:
    measures = [score.as_dict().values() if score else [None] for score in (result.pairwise, result.bcubed)]
    scores = [" / ".join(map(percent, values)) for values in measures]
    numbers = percent(result.nmi), f"{result.num_clusters:,}", f"{result.seconds['total']:.1f}"
    return [part_title(result.part, result.held_out), result.method, *scores, *numbers]


def print_published(results: Sequence[Result]) -> None:
    """Print, for every part of a public benchmark, measured and published F-scores, the highest pairwise ones first."""
    scores = with_published(results)
    parts: dict[str, list[Row]] = {row.part: [] for row in scores}
    for row in sorted(scores, key=lambda row: -np.nan_to_num(row.pairwise)):
        cells = row.method, percent(row.pairwise), percent(row.bcubed), row.source
        parts[row.part].append((cells, row.emphasised))
    for part, rows in parts.items():
        title = f"{part}: measured and published F-scores (percent)"
        print_rows(("method", "pairwise", "BCubed", "source"), [rows], title)


def write_results(results: Sequence[Result], folder: Path) -> None:
    """Write ``metrics.json`` and, of the evaluated method of each part, ``labels/<part>.npy`` with -1 for noise.

    One method of each part is the evaluated one: its values stand under the part's name, those of the baselines under
    "baselines". "held_out" marks parts of held-out identities.
    """
    metrics: dict[str, dict[str, Any]] = {}
    for part, of_part in by_part(results).items():
        [evaluated] = [result for result in of_part if not result.baseline]
        metrics[part] = {"held_out": True} if evaluated.held_out else {}
        metrics[part] |= {"method": evaluated.method, **metrics_of(evaluated)}
        metrics[part]["baselines"] = {result.method: metrics_of(result) for result in of_part if result.baseline}
        labels, noise = evaluated.clustering.labels, evaluated.clustering.noise
        labels = labels if noise is None else label_noise(labels, noise)
        write_atomically(folder / "labels" / f"{part}.npy", partial(np.save, arr=labels))
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")


def metrics_of(result: Result) -> dict[str, Any]:
    """The values of one method on one part in ``metrics.json``."""
    values: dict[str, Any] = {"nodes": len(result.clustering.labels), "clusters": result.num_clusters}
    if result.num_noise:
        values["noise"] = result.num_noise
    if result.pairwise is not None and result.bcubed is not None:
        values |= {"pairwise": result.pairwise.as_dict(), "bcubed": result.bcubed.as_dict(), "nmi": result.nmi}
    return values | {"seconds": result.seconds, "peak_memory_mb": result.peak_memory_mb}


def table_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of `COLUMNS` from one method's values in ``metrics.json``; None where they are missing."""
    row = dict.fromkeys(COLUMNS) | {"nmi": values.get("nmi"), "clusters": values.get("clusters")}
    for measure in ("pairwise", "bcubed"):
        row |= {f"{measure}_{name}": score for name, score in values.get(measure, {}).items()}
    return row | {"seconds": values.get("seconds", {}).get("total")}
