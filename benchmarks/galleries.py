"""Methods without labels beside each other on real galleries: ``python -m benchmarks galleries``.

The galleries come from a Python file, as in ``python -m benchmarks ablation``. Methods marked as oracles take, on each
gallery, the threshold that suits its identities best: no honest method reaches them reliably, they show what a
threshold could gain.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks import ROOT
from benchmarks.ablation import ResultTable, load_module, read_galleries, unsupervised_methods, unsupervised_tables
from benchmarks.measure import machine
from lcde.configuration import build, choose_rule, compose_config
from lcde.data.gallery import Gallery
from lcde.files import write_atomically
from lcde.methods.method import Method
from lcde.models.weights import load_checkpoint
from lcde.progress import track

THRESHOLDS = 40  # that the oracle of hierarchical clustering tries
HAC, INFOMAP = "HAC, average linkage (oracle threshold)", "Infomap (oracle threshold)"
Quality = Mapping[str, Mapping[str, float]]  # in percent, by method, then by gallery


def main(arguments: Sequence[str]) -> None:
    """Cluster all galleries by all methods, print the tables, write the figures of each gallery and a picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks galleries", description=__doc__)
    file = ROOT.parent / "shared" / "galleries" / "regimes.py"
    parser.add_argument("--galleries", type=Path, default=file, help="(%(default)s)")
    parser.add_argument("--only", default="", help="part of the names of the galleries to take; all by default")
    parser.add_argument("--checkpoint", type=Path, help="of a method to compare with, such as a universal model")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    if not options.galleries.is_file():
        raise SystemExit(f"no galleries: {options.galleries} does not exist; name a file with --galleries.")

    module = load_module(options.galleries)
    methods = unsupervised_methods({"unsupervised": []})
    if options.checkpoint:
        trained = load_checkpoint(options.checkpoint)
        config = compose_config("eval", [])
        method = Method(choose_rule(config, "auto", trained), build(config.clustering), trained.model)
        methods[method.name] = lambda gallery: method.cluster(gallery).labels
    quality, one_person = evaluate(module, methods, options.only)
    if not quality[INFOMAP]:
        raise SystemExit(f"no gallery of {options.galleries} has {options.only!r} in its name.")
    tables = [*unsupervised_tables(quality, quality[INFOMAP], one_person), gallery_table(quality)]
    for table in tables:
        table.print()
    described = machine()
    stem = options.results / f"galleries-{str(described['date'])[:19].replace(':', '-')}"
    text = json.dumps({"machine": described, "quality": quality}, indent=1) + "\n"
    write_atomically(stem.with_suffix(".json"), lambda target: target.write(text.encode()))
    picture = figure(quality, one_person)
    write_atomically(stem.with_suffix(".png"), lambda target: picture.savefig(target, format="png", dpi=150))
    Console().print(f"results: {stem}.json and .png")


def evaluate(
    module: ModuleType, methods: Mapping[str, Callable[[Gallery], np.ndarray]], only: str
) -> tuple[Quality, set[str]]:
    """Quality of every method on the galleries of ``module``, and the names of the galleries of one person."""
    oracles, one_person = module.oracles(), set()
    quality: dict[str, dict[str, float]] = {name: {} for name in (*methods, HAC, INFOMAP)}
    for gallery in track(read_galleries(module, only), "galleries"):
        name, identities = gallery.name, gallery.labels_true
        for method, cluster in methods.items():
            quality[method][name] = float(module.quality(identities, cluster(gallery)))
        candidates = hac_labels(gallery.features)
        quality[HAC][name] = max(float(module.quality(identities, labels)) for labels in candidates)
        quality[INFOMAP][name] = float(oracles[name])
        if len(np.unique(identities)) == 1:
            one_person.add(name)
    return quality, one_person


def hac_labels(features: np.ndarray) -> list[np.ndarray]:
    """Labels (N,) of average linkage of cosine distances, at thresholds over the range of its merges."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distances = np.maximum(1 - features @ features.T, 0)
    np.fill_diagonal(distances, 0)
    merges = linkage(squareform(distances, checks=False), "average")
    heights = np.quantile(merges[:, 2], np.linspace(0, 1, THRESHOLDS))
    return [fcluster(merges, height, "distance") for height in heights]


def gallery_table(quality: Quality) -> ResultTable:
    """Quality by gallery and method."""
    methods = list(quality)
    rows = [[name, *(f"{quality[method][name]:.1f}" for method in methods)] for name in quality[methods[0]]]
    return ResultTable("Without labels: quality by gallery (percent)", ["gallery", *methods], rows)


def figure(quality: Quality, one_person: set[str]) -> Figure:
    """A point for each gallery, a bar for the mean, one row for each method; galleries of one person are left out."""
    drawn = Figure(figsize=(9, 1.2 + 0.6 * len(quality)), layout="constrained")
    axes = drawn.subplots()
    for row, values in enumerate(quality.values()):
        kept = [value for name, value in values.items() if name not in one_person]
        axes.plot(kept, np.full(len(kept), row), "o", color="#0072B2", alpha=0.35, markeredgewidth=0)
        if kept:
            axes.plot([np.mean(kept)] * 2, [row - 0.3, row + 0.3], color="#D55E00", linewidth=3)
    axes.set_yticks(range(len(quality)), list(quality))
    axes.invert_yaxis()
    axes.set(xlabel="quality: mean of pairwise and BCubed F (%)", title="One point a gallery, bars at the means")
    axes.grid(axis="x", color="0.9")
    return drawn
