"""What a run leaves behind: the table on the screen, metrics.json, labels and figures."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from lcde import plots
from lcde.clustering.components import label_noise
from lcde.clustering.pipeline import Clustering
from lcde.data.formats import write_atomically
from lcde.data.part import Part
from lcde.evaluation import Result
from lcde.html_report import PartReport, report_part, write_report
from lcde.metrics import Score
from lcde.published import PublishedScore, published_scores, ranks


def evaluate_parts(
    parts: Iterable[Part], evaluate: Callable[[Part], tuple[Result, Clustering] | None], folder: Path, show: bool
) -> tuple[list[Result], dict[str, PartReport]]:
    """Evaluate one part after the other and write the results so far into ``folder`` after each.

    Returns the results and, if they are to be shown, what a report shows of each part; nothing where ``evaluate``
    gives None, as it does on all ranks but the first.
    """
    results, shown = [], {}

    def take(part: Part) -> None:
        evaluated = evaluate(part)
        if evaluated is not None:
            results.append(evaluated[0])
            write_results(results, folder)
            if show:
                shown[part.name] = report_part(part, evaluated[1])

    for _ in map(take, parts):  # a loop over the parts would hold one while the next is read
        pass
    return results, shown


def illustrate(
    results: Sequence[Result], parts: Mapping[str, PartReport], folder: Path, more_figures: Mapping[str, Figure]
) -> None:
    """Write figures and ``report.html`` into ``folder``."""
    figures = method_figures(results) | more_figures
    of_parts = {f"{name}_{kind}": figure for name, part in parts.items() for kind, figure in part.figures.items()}
    plots.save_figures(figures | of_parts, folder / "figures")
    write_report(folder / "report.html", results, parts, figures)


def publish(results: Sequence[Result], folder: Path) -> None:
    """Write metrics and labels into ``folder`` and print the tables."""
    write_results(results, folder)
    print_table(results)
    print_published(results)


def print_table(results: Sequence[Result]) -> None:
    """One line per part and method: precision / recall / F in percent, clusters and seconds."""
    table = Table(title="Face clustering (percent: precision / recall / F)")
    for column in ("part", "method", "pairwise", "BCubed", "NMI", "clusters", "seconds"):
        table.add_column(column, justify="left" if column in ("part", "method") else "right", no_wrap=True)
    for part in dict.fromkeys(result.part for result in results):
        for result in (result for result in results if result.part == part):
            nmi = "–" if result.nmi is None else f"{100 * result.nmi:.2f}"
            name = f"[bold]{result.method}[/bold]" if result.method == "LCDE" else result.method
            seconds = f"{result.seconds['total']:.1f}"
            scores = _percent(result.pairwise), _percent(result.bcubed), nmi
            table.add_row(part, name, *scores, f"{result.num_clusters:,}", seconds)
        table.add_section()
    console().print(table)


def print_published(results: Sequence[Result]) -> None:
    """For every part of a public benchmark: all published F-scores beside the measured ones, with their ranks."""
    for part in dict.fromkeys(result.part for result in results):
        scores = _with_published([result for result in results if result.part == part])
        if not scores:
            continue
        table = Table(title=f"{part}: measured and published F-scores (percent)")
        for column in ("method", "pairwise", "rank", "BCubed", "rank"):
            table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
        columns = [[score.pairwise for score in scores.values()], [score.bcubed for score in scores.values()]]
        rank_columns = [ranks(column) for column in columns]
        for row, method in sorted(enumerate(scores), key=lambda item: rank_columns[0][item[0]] or len(scores)):
            cells = []
            for column, rank in zip(columns, rank_columns, strict=True):
                cells += ["–", "–"] if rank[row] is None else [f"{100 * column[row]:.2f}", str(rank[row])]
            table.add_row(f"[bold]{method}[/bold]" if method == "LCDE" else method, *cells)
        console().print(table)


def write_results(results: Sequence[Result], folder: Path) -> None:
    """Write ``metrics.json`` and, of each part's first method, ``labels/<part>.npy`` with -1 for noise.

    The first method's results stand under the part's name, those of the others under its "baselines".
    """
    metrics: dict[str, dict[str, Any]] = {}
    for result in results:
        if result.part in metrics:
            metrics[result.part]["baselines"][result.method] = _as_dict(result)
            continue
        metrics[result.part] = {**_as_dict(result), "baselines": {}}
        labels = result.labels if result.noise is None else label_noise(result.labels, result.noise)
        path = folder / "labels" / f"{result.part}.npy"
        write_atomically(path, lambda file, labels=labels: np.save(file, labels))
    text = json.dumps(metrics, indent=2) + "\n"
    write_atomically(folder / "metrics.json", lambda file: file.write(text.encode()))


def method_figures(results: Sequence[Result]) -> dict[str, Figure]:
    """Figures of all methods side by side, and beside the published ones where there are such."""
    scored = [result for result in results if result.pairwise is not None]
    if not scored:
        return {}
    rows = [(result.part, result.method, result.pairwise.f_score, result.bcubed.f_score) for result in scored]
    published = [
        (part, method, *score)
        for part in dict.fromkeys(result.part for result in scored)
        for method, score in _with_published([result for result in scored if result.part == part]).items()
    ]
    figures = {"methods": plots.method_comparison(rows)}
    return figures | {"published": plots.method_comparison(published)} if published else figures


def write_config(text: str, folder: Path) -> None:
    """Write the resolved configuration as ``config.yaml``."""
    write_atomically(folder / "config.yaml", lambda file: file.write(text.encode()))


def _with_published(results: Sequence[Result]) -> dict[str, PublishedScore]:
    """F-scores by method of one part, measured first, then published; empty where none were published."""
    published = published_scores(results[0].part, len(results[0].labels))
    if not published or results[0].pairwise is None:
        return {}
    measured = {result.method: PublishedScore(result.pairwise.f_score, result.bcubed.f_score) for result in results}
    return measured | published


def console() -> Console:
    return Console(width=None if Console().is_terminal else 120)


def _percent(score: Score | None) -> str:
    if score is None:
        return "–"
    return f"{100 * score.precision:.2f} / {100 * score.recall:.2f} / {100 * score.f_score:.2f}"


def _as_dict(result: Result) -> dict[str, Any]:
    values: dict[str, Any] = {"nodes": len(result.labels), "clusters": result.num_clusters}
    if result.noise is not None and result.noise.any():
        values["noise"] = int(result.noise.sum())  # of these faces; clusters and scores are from before
    if result.pairwise is not None:
        values |= {"pairwise": result.pairwise.as_dict(), "bcubed": result.bcubed.as_dict(), "nmi": result.nmi}
    return values | {"seconds": result.seconds, "peak_memory_mb": result.peak_memory_mb}
