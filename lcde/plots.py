"""Figures that evaluation and wandb share, drawn with matplotlib's object API: no pyplot, no global state.

Shape letters: N faces, K neighbours counting the face itself. Figures are 9 inches wide: legible at 900 pixels.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from lcde.clustering.density import ROWS
from lcde.clustering.pipeline import Clustering
from lcde.data.formats import write_atomically
from lcde.data.part import Part

# Okabe and Ito's colours, told apart with any colour vision; black, the last, is for references and means.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WIDTH = 9
BINS = 60


def method_comparison(rows: Sequence[tuple[str, str, float, float]]) -> Figure:
    """F-scores of several methods, one panel per part.

    ``rows`` hold (part, method, pairwise F, BCubed F) as fractions, NaN where a score is unknown. Methods keep their
    order from top to bottom, except that "LCDE" comes first and stands out.
    """
    parts = list(dict.fromkeys(row[0] for row in rows))
    methods = sorted(dict.fromkeys(row[1] for row in rows), key=lambda method: method != "LCDE")
    narrow = len(parts) > 3
    figure = Figure(figsize=(WIDTH, 1.8 + 0.45 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axes, part in zip(panels, parts, strict=True):
        scores = {method: f_scores for name, method, *f_scores in rows if name == part}
        for measure, name in enumerate(("pairwise F", "BCubed F")):
            bars = axes.barh(
                np.arange(len(methods)) + 0.4 * (measure - 0.5),
                [100 * scores[method][measure] if method in scores else np.nan for method in methods],
                height=0.38,
                color=[(PALETTE[measure], 1.0 if method == "LCDE" else 0.5) for method in methods],
                label=name,
            )
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axes.set(xlim=(0, 135 if narrow else 115), xticks=range(0, 101, 50 if narrow else 25))
        _describe(axes, part, "F-score (%)", grid=False)  # the values stand at the bars
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].invert_yaxis()
    for label in panels[0].get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == "LCDE" else "normal")
    figure.suptitle("F-scores by method: longer bars are better", weight="bold")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def sweep_scores(rows: Sequence[tuple[Mapping[str, str], str, float, float]]) -> Figure:
    """F-scores of the jobs of a sweep by what varies between them, one panel per part.

    ``rows`` hold (settings, part, pairwise F, BCubed F); all settings have the same keys, scores are fractions. The
    numeric setting of most values is the x axis, the first among equals, and each combination of the others a line.
    Of more than six lines only the points are drawn, once against each numeric setting: a search rather than a grid.
    Without a numeric setting, each combination is a bar.
    """
    distinct = {key: dict.fromkeys(settings[key] for settings, *_ in rows) for key in rows[0][0]}
    numeric = [key for key, values in distinct.items() if all(map(is_number, values))]
    if not numeric:
        texts = (", ".join(f"{key}={value}" for key, value in settings.items()) for settings, *_ in rows)
        figure = method_comparison([(part, text, *score) for text, (_, part, *score) in zip(texts, rows, strict=True)])
        figure.suptitle("F-scores of the sweep: longer bars are better", weight="bold")
        return figure

    x_keys = [max(numeric, key=lambda key: len(distinct[key]))]
    others = [key for key in distinct if key != x_keys[0]]
    lines: dict[str, list[tuple[Mapping[str, str], str, float, float]]] = {}
    for row in rows:
        lines.setdefault(", ".join(row[0][key] for key in others), []).append(row)
    style = ("o-", "s--")
    if len(lines) >= len(PALETTE):
        x_keys, lines, style = numeric, {"": list(rows)}, ("o", "s")

    panels = [(part, key) for part in dict.fromkeys(row[1] for row in rows) for key in x_keys]
    columns = min(3, len(panels))
    height = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 1.2 + 3.2 * height), layout="constrained")
    grid = figure.subplots(height, columns, sharey=True, squeeze=False).flat
    for axes, (part, key) in zip(grid, panels, strict=False):
        for number, (label, line) in enumerate(lines.items()):
            points = sorted((float(settings[key]), 100 * f, 100 * b) for settings, name, f, b in line if name == part)
            for measure, name in enumerate(("pairwise F", "BCubed F")):
                color = PALETTE[number if len(lines) > 1 else measure]
                label = name if len(lines) == 1 else "_" if measure else label
                scores = [point[1 + measure] for point in points]
                look = {"color": color, "markersize": 4 + 2 * (len(lines) - number)}  # one under another shows
                axes.plot([point[0] for point in points], scores, style[measure], label=label, **look)
        if len(distinct[key]) <= 6:
            axes.set_xticks([float(value) for value in distinct[key]], distinct[key])
        _describe(axes, part, key, "F-score (%)" if axes.get_subplotspec().is_first_col() else "")
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    measures, title = (" (solid: pairwise, dashed: BCubed)", ", ".join(others)) if len(lines) > 1 else ("", None)
    figure.suptitle(f"F-scores of the sweep{measures}: higher is better", weight="bold")
    handles = grid[0].get_legend_handles_labels()
    figure.legend(*handles, title=title, loc="outside lower center", ncols=6, frameon=False)
    return figure


def edge_separation(part: Part, clustering: Clustering) -> Figure:
    """Do kNN edges within one identity stand apart from the others? Raw similarity beside the learned weight s·c.

    Counts all N·(K-1) edges of ``part``, whose ``labels_true`` must be known. The overlap is the area that the two
    histograms share when each is scaled to an area of 1.
    """
    low, high = min(0.0, float(part.similarities.min())), max(1.0, float(part.similarities.max()))
    histograms = np.zeros((2, 2, BINS), dtype=np.int64)  # s or s·c; different or same identity; bin
    for start in range(0, len(part), ROWS):
        block = slice(start, start + ROWS)
        same = part.labels_true[part.indices[block, 1:]] == part.labels_true[block, None]
        similarity = part.similarities[block, 1:]
        weights = (similarity, similarity * clustering.connectivity[block, 1:])
        for weight, counts in zip(weights, histograms, strict=True):
            counts += [np.histogram(weight[mask], BINS, (low, high))[0] for mask in (~same, same)]

    edges = np.linspace(low, high, BINS + 1)
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    panels[0].set(yscale="log", xlim=(low, high))
    texts = (("Raw similarity", "cosine similarity s"), ("Learned weight", "similarity × connectivity s·c"))
    for axes, counts, (title, xlabel) in zip(panels, histograms, texts, strict=True):
        for count, color, name in zip(counts, PALETTE[1::-1], ("different identities", "same identity"), strict=True):
            axes.stairs(count, edges, color=color, linewidth=1.5, label=name)
            axes.stairs(count, edges, color=color, alpha=0.2, fill=True)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        _describe(axes, f"{title}: the two overlap by {shares.min(axis=0).sum():.0%}", xlabel, "kNN edges per bin")
    panels[0].set_ylim(bottom=0.8)  # one edge shows above the axis
    if len(clustering.edges_density):  # without networks, the threshold is of whitened similarities
        threshold = clustering.similarity_threshold
        label = f"similarity threshold τ = {threshold:.2f}"
        panels[1].axvline(threshold, color=PALETTE[-1], linestyle="--", label=label)
    panels[1].set_ylabel("")
    figure.suptitle(f"{part.name}: kNN edges within and across identities, less overlap is better", weight="bold")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def cluster_sizes(labels: np.ndarray, labels_true: np.ndarray | None = None) -> Figure:
    """How many clusters have at least x faces; ``labels`` (N,) integers, beside the identities where they are known."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    lines = [(labels, "predicted clusters", PALETTE[0], "-")]
    if labels_true is not None:
        lines.append((labels_true, "true identities", PALETTE[-1], "--"))
    for values, name, color, style in lines:
        sizes, counts = np.unique(np.unique(values, return_counts=True)[1], return_counts=True)
        at_least = counts[::-1].cumsum()[::-1]
        x, y = np.append(1, sizes), np.append(at_least[0], at_least)
        axes.step(x, y, style, color=color, marker=".", label=f"{at_least[0]:,} {name}")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
    against = "" if labels_true is None else ": a perfect clustering follows the dashed line"
    figure.suptitle(f"Clusters of {len(labels):,} faces by size{against}", weight="bold")
    _describe(axes, "", "x, faces in a cluster", "clusters with at least x faces")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def density_correctness(part: Part, clustering: Clustering) -> Figure:
    """Are density edges right where density is high, and does PCENet accept as many as are right?

    Faces of ``part``, whose ``labels_true`` must be known, fall into 10 bins of equal size by density. A density edge
    counts in the bin of its less dense end; it is accepted where `Clustering.kept`.
    """
    correct = np.equal(*part.labels_true[clustering.edges_density].T)
    accepted = clustering.kept
    bins = np.array_split(np.argsort(clustering.density, kind="stable"), min(10, len(part)))
    bin_of = np.empty(len(part), dtype=np.int64)
    for number, faces in enumerate(bins):
        bin_of[faces] = number
    bin_of_edge = bin_of[clustering.edges_density[:, 0]]
    total = np.bincount(bin_of_edge, minlength=len(bins))
    used = total > 0
    mean_density = np.array([clustering.density[faces].mean() for faces in bins])

    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    lines = ((correct, "joins one identity", "-o", PALETTE[0]), (accepted, "accepted by PCENet", "--s", PALETTE[1]))
    for chosen, name, style, color in lines:
        hits = np.bincount(bin_of_edge, weights=chosen, minlength=len(bins))
        label = f"{name}: {chosen.sum():,} of {len(chosen):,}"
        axes.plot(mean_density[used], 100 * hits[used] / total[used], style, color=color, label=label)
    axes.set_ylim(-4, 104)
    figure.suptitle(f"{part.name}: PCENet should accept as many density edges as are correct", weight="bold")
    _describe(axes, "faces in 10 bins of equal size by density", "mean density of a bin", "share of density edges (%)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def training_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Losses, and F-scores of the evaluation parts, by epoch.

    Each mapping of ``history`` is one epoch, with any of the keys ``epoch``; ``train/connectivity_loss_epoch`` and
    ``train/edge_loss_epoch``; the same of each part, ``val/<part>/connectivity_loss`` and ``val/<part>/edge_loss``; the
    F-scores (fractions) ``val/<part>/pairwise_f`` and ``val/<part>/bcubed_f``, and their means over parts
    ``val/pairwise_f`` and ``val/bcubed_f``. A key that an epoch lacks leaves its point out.
    """
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    losses, scores = figure.subplots(1, 2)

    def draw(axes: Axes, label: str, color: str, solid: list[str], dashed: list[str], scale: float = 1) -> None:
        for names, style in ((solid, "-o"), (dashed, "--s")):  # several names: their mean
            rows = [(number, row, [row[name] for name in names if name in row]) for number, row in enumerate(history)]
            points = [(row.get("epoch", number), scale * np.mean(values)) for number, row, values in rows if values]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=color, label=label, markersize=4)
                label = "_"  # one legend entry stands for both lines

    keys = dict.fromkeys(key for row in history for key in row)
    for color, name, label in (
        (PALETTE[0], "connectivity_loss", "LCENet (connectivity)"),
        (PALETTE[1], "edge_loss", "PCENet (edges)"),
    ):
        draw(
            losses,
            label,
            color,
            [f"train/{name}_epoch"],
            [key for key in keys if key.endswith(name) and key[:4] == "val/"],
        )
    parts = [key.split("/")[1] for key in keys if key.endswith("/pairwise_f") and key.count("/") == 2]
    for number, part in enumerate(parts):
        color = PALETTE[number % (len(PALETTE) - 1)]
        draw(scores, part, color, [f"val/{part}/pairwise_f"], [f"val/{part}/bcubed_f"], 100)
    if len(parts) != 1:
        draw(scores, "mean of parts", PALETTE[-1], ["val/pairwise_f"], ["val/bcubed_f"], 100)
    figure.suptitle("Training: losses should fall and F-scores rise", weight="bold")
    _describe(losses, "Losses (solid: train, dashed: validation)", "epoch", "cross-entropy (nats)")
    _describe(scores, "F-scores (solid: pairwise, dashed: BCubed)", "epoch", "F-score (%)")
    for axes in (losses, scores):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if axes.lines:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False)
    return figure


def save_figures(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write each figure as ``folder/<name>.png``, whole or not at all."""
    for name, figure in figures.items():
        write_atomically(folder / f"{name}.png", partial(figure.savefig, format="png", dpi=150))


def is_number(text: str) -> bool:
    """Whether a setting, as it was typed, can stand on an axis."""
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False


def _describe(axes: Axes, title: str, xlabel: str, ylabel: str = "", grid: bool = True) -> None:
    axes.set_title(title, fontsize=11)
    axes.set(xlabel=xlabel, ylabel=ylabel, axisbelow=True)
    if grid:
        axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
