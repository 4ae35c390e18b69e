"""What a run leaves behind: the table on the screen, metrics.json, labels and figures."""

import json
from collections.abc import Mapping, Sequence
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
from lcde.html_report import write_report
from lcde.metrics import Score
from lcde.published import PublishedScore, published_scores, ranks


def illustrate(
    results: Sequence[Result],
    clusterings: Sequence[tuple[Part, Clustering]],
    folder: Path,
    more_figures: Mapping[str, Figure],
) -> dict[str, Figure]:
    """Write figures and ``report.html`` into ``folder``; return the figures by name."""
    figures = make_figures(results, clusterings) | more_figures
    plots.save_figures(figures, folder / "figures")
    images = {part.name: part.images for part, _ in clusterings if part.images is not None}
    write_report(folder / "report.html", results, clusterings, figures, images)
    return figures


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


def make_figures(results: Sequence[Result], clusterings: Sequence[tuple[Part, Clustering]]) -> dict[str, Figure]:
    """Figures by file name: methods side by side, and for each part its edges, cluster sizes and density."""
    figures = {}
    scored = [result for result in results if result.pairwise is not None]
    if scored:
        rows = [(result.part, result.method, result.pairwise.f_score, result.bcubed.f_score) for result in scored]
        figures["methods"] = plots.method_comparison(rows)
        rows = [
            (part, method, *score)
            for part in dict.fromkeys(result.part for result in scored)
            for method, score in _with_published([result for result in scored if result.part == part]).items()
        ]
        if rows:
            figures["published"] = plots.method_comparison(rows)
    for part, clustering in clusterings:
        figures[f"{part.name}_cluster_sizes"] = plots.cluster_sizes(clustering.labels, part.labels_true)
        if part.labels_true is not None and part.k > 1:
            figures[f"{part.name}_edges"] = plots.edge_separation(part, clustering)
        if part.labels_true is not None and len(clustering.edges_density):
            figures[f"{part.name}_density"] = plots.density_correctness(part, clustering)
    return figures


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
