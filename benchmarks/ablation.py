"""What each part of the rules contributes: ``python -m benchmarks ablation``.

Rules without labels cluster all galleries of a Python file with the functions ``galleries()`` (name, features,
identities), ``quality(identities, labels)`` in percent, and ``oracles()``, the best known quality of each gallery.
Rules with trained networks cluster the evaluation parts of the data sets that the checkpoints were trained on.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import ROOT
from benchmarks.measure import machine
from lcde.configuration import build, compose_config
from lcde.data.formats import normalise, read_labels, read_matrix
from lcde.data.gallery import Gallery
from lcde.data.knn import build_knn
from lcde.files import write_text
from lcde.methods.method import Method, Scores
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.models.base import PairModel
from lcde.models.weights import load_checkpoint
from lcde.progress import track

K = 80  # neighbours in the galleries without labels, as by default in dataset=custom
PART = "part1_test"

# Overrides of eval.py by the name of the variant.
UNSUPERVISED = {
    "unsupervised": [],
    "without centring": ["clustering.centring=false"],
    "without whitening": ["clustering.whitening=false"],
    "without merging": ["clustering.merging=false"],
    "without edges below the strict threshold": ["clustering.false_edges=0"],
    "without average linkage": ["clustering.impostor_merges=0"],
    "without merges by likelihood": ["clustering.expected_merges=0"],
    "without merge trees": ["clustering.merge_trees=null"],
    "without whitening and merging": ["clustering.whitening=false", "clustering.merging=false"],
}
HDBSCAN_SIZES = (2, 5)  # min_cluster_size
TRAINED = {
    "lcde": ["clustering=lcde"],
    "without a second pass": ["clustering=lcde", "clustering.second_pass=null"],
    "without edges below the strict threshold": ["clustering=lcde", "clustering.second_pass.false_edges=0"],
    "without average linkage": ["clustering=lcde", "clustering.second_pass.impostor_merges=0"],
    "without merges by likelihood": ["clustering=lcde", "clustering.second_pass.expected_merges=0"],
    "num_trials=10": ["clustering=lcde", "clustering.second_pass.num_trials=10"],
    "min_connectivity=0": ["clustering=lcde", "clustering.min_connectivity=0"],
    "ask_strong=true": ["clustering=lcde", "clustering.ask_strong=true"],
    "precision=float32": ["clustering=lcde", "clustering.precision=float32"],
    "exact (the paper's rule)": ["clustering=exact"],
}


@dataclass(frozen=True)
class ResultTable:
    """A table for the terminal and for Markdown; columns are right-aligned but for the first ``num_text``."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_text: int = 1

    def print(self) -> None:
        """Print it."""
        table = Table(title=self.title)
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number >= self.num_text else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        console = Console()
        (console if console.is_terminal else Console(width=160)).print(table)

    def markdown(self) -> str:
        """The table in Markdown, under a heading."""
        rule = ["---"] * self.num_text + ["---:"] * (len(self.columns) - self.num_text)
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.columns, rule, *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines, ""])


@dataclass(frozen=True)
class TrainedScore:
    """What one variant gave for one gallery with one checkpoint.

    Attributes
    ----------
    data, part, variant, checkpoint : str
    pairwise_f, bcubed_f : float
    edges : int
        Edges that PCENet was asked about.
    seconds : float
        Of the rule, without the networks.
    """

    data: str
    part: str
    variant: str
    checkpoint: str
    pairwise_f: float
    bcubed_f: float
    edges: int
    seconds: float


def main(arguments: Sequence[str]) -> None:
    """Run the ablations, print their tables and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ablation", description=__doc__)
    shared = ROOT.parent / "shared"
    parser.add_argument("--galleries", type=Path, default=shared / "galleries" / "regimes.py", help="(%(default)s)")
    parser.add_argument("--data", type=Path, default=shared / "data", help="folder of data sets in MS1M's layout")
    what = 'data set and checkpoint: "synthetic" or a folder under --data; several of one data set are averaged'
    parser.add_argument("--checkpoints", nargs="*", default=[], metavar="NAME=FILE", help=what)
    parser.add_argument("--docs", action="store_true", help="write docs/ablation.md too")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    if wrong := [pair for pair in options.checkpoints if not Path(pair.partition("=")[2]).is_file()]:
        parser.error(f"--checkpoints takes NAME=FILE with an existing file, not {wrong[0]}")

    described, tables, results = machine(), [], {}
    if options.galleries.is_file():
        module = load_module(options.galleries)
        quality, oracle = evaluate_unsupervised(module), module.oracles()
        results["unsupervised"] = {
            "quality": quality,
            "oracle": {name: oracle[name] for name in quality["unsupervised"]},
        }
        one_person = {name for name, _, identities in module.galleries() if len(np.unique(identities)) == 1}
        tables += unsupervised_tables(quality, oracle, one_person)
    else:
        Console().print(f"no galleries for the rules without labels: {options.galleries} does not exist")
    with tempfile.TemporaryDirectory() as cache:
        scores = evaluate_trained(options.checkpoints, options.data, Path(cache))
    if scores:
        results["trained"] = [asdict(score) for score in scores]
        tables.append(trained_table(scores))
    if not tables:
        raise SystemExit("nothing to compare; see --galleries and --checkpoints")

    for table in tables:
        table.print()
    path = options.results / f"ablation-{str(described['date'])[:19].replace(':', '-')}.json"
    write_text(path, json.dumps({"machine": described, **results}, indent=1) + "\n")
    if options.docs:
        write_text(ROOT / "docs" / "ablation.md", page(tables, described))
    Console().print(f"results: {path}")


def load_module(file: Path) -> ModuleType:
    """The Python ``file`` as a module."""
    specification = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def evaluate_unsupervised(module: ModuleType) -> dict[str, dict[str, float]]:
    """Quality in percent of every method on every gallery of ``module``: by method, then by gallery."""
    methods = unsupervised_methods(UNSUPERVISED)
    quality: dict[str, dict[str, float]] = {name: {} for name in methods}
    for gallery in track(read_galleries(module), "galleries"):
        for name, cluster in methods.items():
            quality[name][gallery.name] = float(module.quality(gallery.labels_true, cluster(gallery)))
    return quality


def read_galleries(module: ModuleType, only: str = "") -> Iterator[Gallery]:
    """The galleries of ``module`` with ``only`` in their names, and their kNN graphs."""
    for name, features, identities in module.galleries():
        if only not in name:
            continue
        unit = normalise(np.array(features, dtype=np.float32), name)
        yield Gallery(name, unit, build_knn(unit, min(K, len(unit))), identities)


def unsupervised_methods(variants: Mapping[str, Sequence[str]]) -> dict[str, Callable[[Gallery], np.ndarray]]:
    """By name, what gives the labels of a gallery: ``variants`` (overrides of ``clustering=unsupervised``), HDBSCAN."""

    def labels_by(*overrides: str) -> Callable[[Gallery], np.ndarray]:
        rule = build_rule(overrides)
        return lambda gallery: rule(gallery, None).labels

    methods = {name: labels_by("clustering=unsupervised", *overrides) for name, overrides in variants.items()}
    for size in HDBSCAN_SIZES:
        methods[f"HDBSCAN, min_cluster_size={size}"] = labels_by("clustering=hdbscan", f"clustering.smallest={size}")
    return methods


def build_rule(overrides: Sequence[str]) -> Callable:
    """The rule of ``eval.py <overrides>``."""
    return build(compose_config("eval", overrides).clustering)


def unsupervised_tables(
    quality: Mapping[str, Mapping[str, float]], oracle: Mapping[str, float], one_person: set[str]
) -> list[ResultTable]:
    """Quality and regret (what the best known threshold would gain) over all galleries, and quality by regime.

    Galleries of one person have columns of their own: the regret says little of them.
    """
    names = [name for name in next(iter(quality.values())) if name not in one_person]
    regimes = list(dict.fromkeys(_regime(name) for name in names))
    overall, by_regime = [], []
    for method, values in quality.items():
        of_all, alone = [values[name] for name in names], [values[name] for name in values if name in one_person]
        regret = [oracle[name] - values[name] for name in names]
        cells = [*_mean_median(of_all), min(of_all), *_mean_median(regret), max(regret)]
        cells += [statistics.mean(alone), min(alone)] if alone else []
        overall.append([method, *(f"{cell:.1f}" for cell in cells)])
        means = [statistics.mean(values[name] for name in names if _regime(name) == regime) for regime in regimes]
        by_regime.append([method, *(f"{mean:.1f}" for mean in means)])
    columns = [f"{what} {value}" for what in ("quality", "regret") for value in ("mean", "median", "worst")]
    columns += ["one person mean", "one person worst"] if one_person else []
    title = f"Without labels: quality and regret on {len(names)} galleries (percent)"
    return [
        ResultTable(title, ["method", *columns], overall),
        ResultTable("Without labels: mean quality by regime (percent)", ["method", *regimes], by_regime),
    ]


def evaluate_trained(checkpoints: Sequence[str], data: Path, cache: Path) -> list[TrainedScore]:
    """Every variant of `TRAINED` on the evaluation parts of each NAME=FILE of ``checkpoints``."""
    scores = []
    for pair in checkpoints:
        name, _, file = pair.partition("=")
        model = load_checkpoint(file).model
        if name != "synthetic" and not (data / name).is_dir():
            Console().print(f"{name} is left out: {data / name} does not exist")
            continue
        for gallery in labelled_galleries(name, model, data):
            for variant in track(TRAINED, f"{name} {gallery.name}"):
                scores.append(_score(gallery, variant, model, cache, name, file))
    return scores


def labelled_galleries(name: str, model: PairModel, data: Path) -> Sequence[Gallery]:
    """The evaluation parts of data set ``name`` with the sizes of ``model``; nothing is written beside them."""
    if name == "synthetic":
        sizes = [f"dataset.feature_dim={model.feature_dim}", f"dataset.k={model.k}"]
        return build(compose_config("eval", sizes).dataset).load(train=False).evaluation
    labels = read_labels(data / name / "labels" / f"{PART}.meta")
    features = read_matrix(data / name / "features" / f"{PART}.bin", model.feature_dim, len(labels))
    return [Gallery(PART, features, build_knn(features, model.k), labels)]


def _score(gallery: Gallery, variant: str, model: PairModel, cache: Path, data: str, checkpoint: str) -> TrainedScore:
    method = Method(variant, build_rule(TRAINED[variant]), model, cache)
    method.cluster(gallery)  # asks the networks what no variant before has asked
    counting = CountingModel(model)
    clustering = Method(variant, method.rule, counting, cache).cluster(gallery)
    table = Contingency.of(gallery.labels_true, clustering.labels)
    seconds = sum(clustering.seconds.values())
    figures = pairwise(table).f_score, bcubed(table).f_score, counting.edges, seconds
    return TrainedScore(data, gallery.name, variant, checkpoint, *figures)


@dataclass
class CountingModel:
    """A model that counts the edges whose probability is asked for."""

    model: PairModel
    edges: int = 0

    def bind(self, gallery: Gallery, precision: str, show_progress: bool, score_cache: Path | None) -> Scores:
        """Scores of the model that count."""
        scores = self.model.bind(gallery, precision, show_progress, score_cache)
        ask = scores.edge_probability

        def counted(edges: np.ndarray) -> np.ndarray:
            self.edges += len(edges)
            return ask(edges)

        scores.edge_probability = counted
        return scores


def trained_table(scores: Sequence[TrainedScore]) -> ResultTable:
    """F-scores of each variant, means over the checkpoints of a data set, and the change from the first variant."""
    rows = []
    for data, part, variant in dict.fromkeys((score.data, score.part, score.variant) for score in scores):
        of_part = [score for score in scores if (score.data, score.part) == (data, part)]
        own = [score for score in of_part if score.variant == variant]
        first = [score for score in of_part if score.variant == of_part[0].variant]
        change = [_mean_f(a) - _mean_f(b) for a, b in zip(own, first, strict=True)]
        percent = [statistics.mean(100 * score.pairwise_f for score in own)]
        percent.append(statistics.mean(100 * score.bcubed_f for score in own))
        changes = f"{100 * statistics.mean(change):+.2f}"
        if len(change) > 1:
            changes += f" ({100 * min(change):+.2f} … {100 * max(change):+.2f})"
        edges, seconds = (statistics.mean(getattr(score, name) for score in own) for name in ("edges", "seconds"))
        cells = [f"{value:.2f}" for value in percent] + [changes, f"{edges:,.0f}", f"{seconds:.2f}", str(len(own))]
        rows.append([f"{data} {part}", variant, *cells])
    columns = ["part", "variant", "pairwise F", "BCubed F", "mean F − lcde", "edges asked", "seconds", "checkpoints"]
    return ResultTable("Trained networks: F-scores (percent), rule without networks (seconds)", columns, rows, 2)


TERMS = """
Quality is the mean of pairwise and BCubed F, or BCubed F alone where no two faces are of one person. Regret is the
best quality that is known of a gallery, that of Infomap with the threshold that suits the gallery best, minus the
quality of the method. Regimes: all photographs; one to four of each person; a long tail; ten people with at most ten
photographs each; five people with all their photographs among people with one each (family); two people; frames of
videos; one photograph of each person (singles). Galleries of one person are scored apart. The merge trees that come
with lcde have learnt from the same sources; figures of trees that have not are in docs/reference/merge_trees.md. Edges
asked are those that PCENet judges.
"""


def page(tables: Sequence[ResultTable], described: Mapping[str, str | int]) -> str:
    """The Markdown page of ``tables``."""
    where = f"{described['processor']}, {described['cores']} cores, torch {described['torch']}"
    head = (
        f"# Ablation\n\nWritten by `python -m benchmarks ablation --docs` on {str(described['date'])[:10]} ({where}).\n"
    )
    return "\n".join([head + TERMS, *(table.markdown() for table in tables)])


def _regime(name: str) -> str:
    return name.rpartition("/")[2]


def _mean_median(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.median(values)


def _mean_f(score: TrainedScore) -> float:
    return (score.pairwise_f + score.bcubed_f) / 2
