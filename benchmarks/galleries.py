"""Methods without labels beside each other on real galleries: ``python -m benchmarks galleries``.

The galleries come from a Python file, as in ``python -m benchmarks ablation``. A method with a threshold has two lines:
with the threshold that has the best mean quality on the galleries of all other embedders, and, as an oracle, with the
one that suits the identities of each gallery best, which shows what a threshold could gain. Names of galleries are
``<embedder>[-<variant>]/<regime>``.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks import ROOT
from benchmarks.ablation import build_rule, load_module, read_galleries, unsupervised_tables
from benchmarks.measure import machine
from lcde.configuration import build, choose_rule, compose_config
from lcde.data.gallery import Gallery
from lcde.files import write_atomically, write_text
from lcde.methods.classical import ThresholdRule
from lcde.methods.method import Method
from lcde.models.weights import load_checkpoint
from lcde.progress import track

THRESHOLDS = 32  # that are tried, over the range that the method's candidates have in all galleries
INFOMAP = "Infomap (oracle threshold)"
CHOICES = ["hac", "chinese_whispers", "dbscan", "cdp", "map_equation", "components", "facemap", "hdbscan"]
if importlib.util.find_spec("infomap"):
    CHOICES.append("fces")
Quality = Mapping[str, Mapping[str, float]]  # in percent, by method, then by gallery


def main(arguments: Sequence[str]) -> None:
    """Cluster all galleries by all methods, print the tables, write the figures of each gallery and a picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks galleries", description=__doc__)
    file = ROOT.parent / "shared" / "galleries" / "regimes.py"
    parser.add_argument("--galleries", type=Path, default=file, help="(%(default)s)")
    parser.add_argument("--only", default="", help="part of the names of the galleries to take; all by default")
    parser.add_argument("--checkpoint", type=Path, help="of a method to compare with, such as a universal model")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--methods", nargs="*", default=CHOICES, help="choices of clustering= (%(default)s)")
    options = parser.parse_args(arguments)
    if not options.galleries.is_file():
        raise SystemExit(f"no galleries: {options.galleries} does not exist; name a file with --galleries.")

    module = load_module(options.galleries)
    rules: dict[str, Method] = {}
    for choice in ("unsupervised", *options.methods):
        rules[choice] = Method(choice, build_rule([f"clustering={choice}"]))
    if options.checkpoint:
        trained = load_checkpoint(options.checkpoint)
        config = compose_config("eval", [])
        name = choose_rule(config, "auto", trained)
        rules[name] = Method(name, build(config.clustering), trained.model)
    found = list(track(read_galleries(module, options.only), "galleries"))
    if not found:
        raise SystemExit(f"no gallery of {options.galleries} has {options.only!r} in its name.")
    quality = evaluate(found, rules, module.quality)
    oracles = module.oracles()
    quality[INFOMAP] = {gallery.name: float(oracles[gallery.name]) for gallery in found}
    one_person = {gallery.name for gallery in found if len(np.unique(gallery.labels_true)) == 1}
    for table in unsupervised_tables(quality, quality[INFOMAP], one_person):
        table.print()
    described = machine()
    stem = options.results / f"galleries-{str(described['date'])[:19].replace(':', '-')}"
    text = json.dumps({"machine": described, "quality": quality}, indent=1) + "\n"
    write_text(stem.with_suffix(".json"), text)
    picture = figure(quality, one_person)
    write_atomically(stem.with_suffix(".png"), lambda target: picture.savefig(target, format="png", dpi=150))
    Console().print(f"results: {stem}.json and .png")


def evaluate(
    found: Sequence[Gallery], methods: Mapping[str, Method], quality_of: Callable[[np.ndarray, np.ndarray], float]
) -> dict[str, dict[str, float]]:
    """Quality of every method on every gallery."""
    quality: dict[str, dict[str, float]] = {}
    for name, method in track(methods.items(), "methods"):
        rule = method.rule
        if isinstance(rule, ThresholdRule):
            by_gallery = {gallery.name: qualities for gallery, qualities in by_threshold(found, rule, quality_of)}
            chosen = chosen_elsewhere(by_gallery)
            quality[f"{name}, threshold of other embedders"] = {
                gallery: float(qualities[chosen[gallery]]) for gallery, qualities in by_gallery.items()
            }
            quality[f"{name} (oracle threshold)"] = {
                gallery: float(qualities.max()) for gallery, qualities in by_gallery.items()
            }
        else:
            quality[name] = {}
            for gallery in track(found, name):
                clustering = method.cluster(gallery)
                assert clustering is not None
                quality[name][gallery.name] = float(quality_of(gallery.labels_true, clustering.labels))
    return quality


def by_threshold(
    found: Sequence[Gallery], rule: ThresholdRule, quality_of: Callable[[np.ndarray, np.ndarray], float]
) -> Iterator[tuple[Gallery, np.ndarray]]:
    """Each gallery and the quality (`THRESHOLDS`,) that ``rule`` has on it with each threshold."""
    graphs = [rule.weigh(gallery, None) for gallery in found]
    candidates = np.concatenate([rule.candidates(graph) for graph in graphs])
    thresholds = np.linspace(candidates.min(), candidates.max(), THRESHOLDS).tolist()
    for gallery, graph in track(list(zip(found, graphs, strict=True)), "thresholds"):
        cuts = (replace(rule, threshold=threshold).cut(gallery, graph) for threshold in thresholds)
        yield gallery, np.array([quality_of(gallery.labels_true, clustering.labels) for clustering in cuts])


def chosen_elsewhere(by_gallery: Mapping[str, np.ndarray]) -> dict[str, int]:
    """For each gallery the threshold of the best mean quality on the galleries of other embedders, or on all if none.

    Galleries of one person do not count, as the highest quality there is that of one cluster.
    """
    chosen = {}
    for name in by_gallery:
        others = {other: qualities for other, qualities in by_gallery.items() if embedder(other) != embedder(name)}
        counted = [qualities for other, qualities in (others or by_gallery).items() if not other.endswith("/one")]
        chosen[name] = int(np.mean(counted or list(by_gallery.values()), axis=0).argmax())
    return chosen


def embedder(name: str) -> str:
    """The embedder of a gallery, by its name."""
    return name.split("/")[0].split("-")[0]


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
