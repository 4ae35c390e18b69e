"""Figures of reports and loggers, drawn with matplotlib's object API: no pyplot, no global state.

Shape letters: N faces, K neighbours counting the face itself. Figures are 9 inches wide, legible at 900 pixels.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lcde.data.gallery import Gallery, row_blocks
from lcde.evaluation.published import ScoreRow
from lcde.files import write_atomically
from lcde.methods.method import Clustering

# Okabe and Ito's colours, which people with any colour vision tell apart; black, the last, is for references.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WIDTH = 9
BINS = 60
MEASURES = ("pairwise F", "BCubed F")
CURVES = (  # of training: pattern of keys, panel, style
    (r"train/([^/]*loss)_epoch", 0, "-o"),
    (r"val/([^/]*loss)", 0, "--s"),
    (r"(?:test/)?(.*)/pairwise_f", 1, "-o"),
    (r"(?:test/)?(.*)/bcubed_f", 1, "--s"),
)


def method_comparison(rows: Sequence[ScoreRow], title: str = "F-scores by method: longer bars are better") -> Figure:
    """F-scores of several methods, one panel per part.

    Parameters
    ----------
    rows : sequence of ScoreRow
        Methods keep their order from top to bottom, except that emphasised ones come first and stand out.
    title : str
    """
    emphasised = {row.method for row in rows if row.emphasised}
    parts = list(dict.fromkeys(row.part for row in rows))
    methods = sorted(dict.fromkeys(row.method for row in rows), key=lambda method: method not in emphasised)
    figure, panels = _grid(title, 1.8 + 0.45 * len(methods), columns=len(parts))
    for axes, part in zip(panels, parts, strict=True):
        of_part = {row.method: (row.pairwise, row.bcubed) for row in rows if row.part == part}
        for measure, name in enumerate(MEASURES):
            scores = [100 * of_part.get(method, (np.nan, np.nan))[measure] for method in methods]
            colors = [(PALETTE[measure], 1.0 if method in emphasised else 0.5) for method in methods]
            places = np.arange(len(methods)) + 0.4 * (measure - 0.5)
            bars = axes.barh(places, scores, height=0.38, color=colors, label=name)
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axes.set(title=_verbatim(part), xlabel="F-score (%)", xlim=(0, 130), xticks=(0, 50, 100))
        axes.grid(False)  # the values stand at the bars
    panels[0].set_yticks(range(len(methods)), map(_verbatim, methods))
    panels[0].invert_yaxis()
    _legend(figure, panels[0])
    return figure


def sweep_scores(rows: Sequence[tuple[Mapping[str, str], ScoreRow]]) -> Figure:
    """F-scores of the jobs of a sweep by what varies between them, one panel per part.

    The numeric setting with most values is the x axis, the first among equals, and each combination of the others a
    line. If that gives more than six lines, as a random search does, only points are drawn, against each numeric
    setting. Without a numeric setting, each combination is a bar.

    Parameters
    ----------
    rows : sequence of (settings, ScoreRow)
        The settings of one job, which have the same keys in all jobs, and its scores on one part.
    """
    numeric = [key for key in rows[0][0] if all(is_number(job[key]) for job, _ in rows)]
    if not numeric:
        named = [replace(row, method=", ".join(f"{key}={value}" for key, value in job.items())) for job, row in rows]
        return method_comparison(named, "F-scores of the sweep: longer bars are better")

    x_keys = [max(numeric, key=lambda key: len({job[key] for job, _ in rows}))]
    others, styles = [key for key in rows[0][0] if key not in x_keys], ("o-", "s--")
    if len({tuple(job[key] for key in others) for job, _ in rows}) >= len(PALETTE):
        x_keys, others, styles = numeric, [], ("o", "s")
    lines: dict[str, list[tuple[Mapping[str, str], ScoreRow]]] = {}
    for job, row in rows:
        lines.setdefault(", ".join(job[key] for key in others), []).append((job, row))

    parts = dict.fromkeys(row.part for _, row in rows)
    title = "F-scores of the sweep: higher is better"
    figure, panels = _grid(title, 1.4 + 3.2 * len(parts), len(parts), len(x_keys))
    for axes, (part, key) in zip(panels, product(parts, x_keys), strict=True):
        for number, (combination, line) in enumerate(lines.items()):
            of_part = sorted((float(job[key]), row.pairwise, row.bcubed) for job, row in line if row.part == part)
            x, *scores = np.array(of_part).reshape(-1, 3).T
            for measure, name in enumerate(MEASURES):
                color = PALETTE[number if len(lines) > 1 else measure]
                label = _verbatim(f"{combination} {name}".strip())
                axes.plot(x, 100 * scores[measure], styles[measure], label=label, color=color)
        axes.set(title=_verbatim(part), xlabel=key)
    figure.supylabel("F-score (%)")
    _legend(figure, panels[0], ", ".join(others))
    return figure


def edge_separation(gallery: Gallery, clustering: Clustering) -> Figure:
    """Histograms of kNN edges within one identity and across identities.

    The first panel is of the raw similarity; a second one, if the clustering has connectivity, of the learned weight
    s·c. All N·(K-1) edges count. The overlap is the area that both histograms share when each is scaled to area 1.

    Parameters
    ----------
    gallery : Gallery
        Its ``labels_true`` must be known.
    clustering : Clustering
    """
    graph, labels_true = gallery.graph, gallery.labels_true
    assert labels_true is not None
    connectivity, threshold = clustering.details.connectivity, clustering.details.similarity_threshold
    texts = [("Raw similarity", "cosine similarity s"), ("Learned weight", "similarity × connectivity s·c")]
    factors = [None] if connectivity is None else [None, connectivity]
    low, high = min(0.0, float(graph.similarities.min())), max(1.0, float(graph.similarities.max()))
    histograms = np.zeros((len(factors), 2, BINS), dtype=np.int64)  # s or s·c; different or same identity; bin
    for block in row_blocks(len(gallery)):
        same = labels_true[graph.indices[block, 1:]] == labels_true[block, None]
        for factor, counts in zip(factors, histograms, strict=True):
            weights = graph.similarities[block, 1:] * (1 if factor is None else factor[block, 1:])
            counts += [np.histogram(weights[mask], BINS, (low, high))[0] for mask in (~same, same)]

    edges = np.linspace(low, high, BINS + 1)
    title = f"{_verbatim(gallery.name)}: kNN edges within and across identities, less overlap is better"
    figure, panels = _grid(title, 4.4, columns=len(factors))
    panels[0].set(yscale="log", ylabel="kNN edges per bin")
    for axes, counts, (name, xlabel) in zip(panels, histograms, texts, strict=False):
        for count, color, label in zip(counts, PALETTE[1::-1], ("different identities", "same identity"), strict=True):
            axes.stairs(count, edges, fill=True, facecolor=(color, 0.2), edgecolor=color, linewidth=1.5, label=label)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.set(title=f"{name}: the two overlap by {shares.min(axis=0).sum():.0%}", xlabel=xlabel, xlim=(low, high))
    panels[0].set_ylim(bottom=0.8)  # one edge shows above the axis
    if connectivity is not None and threshold is not None:
        label = f"similarity threshold τ = {threshold:.2f}"
        panels[1].axvline(threshold, color=PALETTE[-1], linestyle="--", label=label)
    _legend(figure, panels[-1])
    return figure


def cluster_sizes(labels: np.ndarray, labels_true: np.ndarray | None = None) -> Figure:
    """How many clusters have at least x faces; ``labels`` (N,) integers, beside the identities where known."""
    against = "" if labels_true is None else ": a perfect clustering follows the dashed line"
    figure, [axes] = _grid(f"Clusters of {len(labels):,} faces by size{against}", 4.6)
    lines = [(labels, "predicted clusters", PALETTE[0], "-")]
    if labels_true is not None:
        lines.append((labels_true, "true identities", PALETTE[-1], "--"))
    for values, name, color, style in lines:
        sizes = np.sort(np.unique(values, return_counts=True)[1])
        x, smaller = np.unique(np.append(1, sizes), return_index=True)
        label = f"{len(sizes):,} {name}"
        axes.step(x, len(sizes) - np.maximum(smaller - 1, 0), style, color=color, marker=".", label=label)
    axes.set(xscale="log", yscale="log", xlabel="x, faces in a cluster", ylabel="clusters with at least x faces")
    _legend(figure, axes)
    return figure


def training_curves(history: Sequence[Mapping[str, float]], chosen: float | None = None) -> Figure:
    """Losses and F-scores by epoch; a vertical line marks the epoch that the held-out identities choose.

    Parameters
    ----------
    history : sequence of mappings
        One per epoch, with any of the keys ``epoch``; ``train/<loss>_epoch`` and, of held-out pairs, ``val/<loss>``,
        where the name of a loss ends in "loss"; of held-out identities the F-scores (fractions) ``val/pairwise_f``,
        ``val/bcubed_f`` and their mean ``val/f_score``, which chooses; of evaluation parts ``test/<part>/pairwise_f``
        and ``test/<part>/bcubed_f``, which do not choose. Values that an epoch lacks are not drawn.
    chosen : float, optional
        ``val/f_score`` of the chosen epoch.
    """
    figure, panels = _grid("Training: losses should fall and F-scores rise", 4.8, columns=2, sharey=False)
    panels[0].set(title="Losses (solid: train, dashed: held-out)", xlabel="epoch", ylabel="loss")
    panels[1].set(title="F-scores (solid: pairwise, dashed: BCubed)", xlabel="epoch", ylabel="F-score (%)")

    def points(key: str) -> np.ndarray:
        """Epochs and values (2, E)."""
        found = [(row.get("epoch", i), row[key]) for i, row in enumerate(history) if key in row]
        return np.array(found).reshape(-1, 2).T

    colors: dict[str, str] = {}
    keys = dict.fromkeys(key for row in history for key in row)
    for (pattern, panel, style), key in product(CURVES, keys):
        if match := re.fullmatch(pattern, key):
            name = "held-out identities" if match[1] == "val" else match[1].replace("_loss", " loss")
            label = "_" if name in colors else name  # one legend entry stands for both lines
            color = colors.setdefault(name, PALETTE[len(colors) % len(PALETTE)])
            x, y = points(key)
            panels[panel].plot(x, (1, 100)[panel] * y, style, color=color, label=label, markersize=4)
    epochs, scores = points("val/f_score")
    marked = epochs[np.isclose(scores, np.nan if chosen is None else chosen)][-1:]  # the latest of equal ones
    for axes in panels:
        for epoch in marked:
            axes.axvline(epoch, color="0.4", linestyle=":", zorder=0, label=f"chosen epoch: {epoch:g}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if axes.lines:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)
    return figure


def save_figures(figures: Mapping[str, Figure], folder: Path) -> dict[str, Path]:
    """Write each figure as ``folder/<name>.png``, whole or not at all; the files by name."""
    files = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        write_atomically(files[name], partial(figure.savefig, format="png", dpi=150))
    return files


def is_number(text: str) -> bool:
    """Whether a setting, as it was typed, can stand on an axis."""
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False


def _verbatim(name: str) -> str:
    """A name that a user gave, without formulas: Matplotlib sets what stands between dollar signs as one."""
    return name.replace("$", r"\$")


def _grid(title: str, height: float, rows: int = 1, columns: int = 1, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of ``height`` inches and its panels, row by row."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, weight="bold")
    panels = list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flat)
    for axes in panels:
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _legend(figure: Figure, axes: Axes, title: str = "") -> None:
    """Name the lines of ``axes``, which all panels share, below the panels."""
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, title=title, loc="outside lower center", ncols=3, frameon=False)
