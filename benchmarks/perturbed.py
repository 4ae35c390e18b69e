"""How much an approximate or a flawed kNN graph, and another order of the faces, change what the default rule finds.

``python -m benchmarks perturbed`` clusters the galleries of a Python file, as in ``python -m benchmarks ablation``, the
evaluation parts of data sets in MS1M's layout, and the synthetic benchmark, each as it is and after each change.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
from rich.console import Console
from sklearn.metrics import adjusted_rand_score

from benchmarks import ROOT
from benchmarks.ablation import PART, K, ResultTable, build_rule, load_module, read_galleries
from benchmarks.measure import machine
from lcde.configuration import build, compose_config
from lcde.data import search
from lcde.data.formats import read_labels, read_matrix
from lcde.data.gallery import Gallery, KNNGraph
from lcde.data.knn import build_knn, order_neighbours, own_graph
from lcde.files import write_text
from lcde.metrics import Contingency, bcubed, pairwise
from lcde.progress import track

TENTH = 0.1  # of the neighbours of each face
FEWEST = 624  # faces for an approximate graph: the codes of fewer cannot be trained
RECALL = 0.9  # at least, of the approximate graph; among a million faces of `benchmarks rehearsal` it is 0.96


@dataclass(frozen=True)
class Change:
    """What one change of a gallery does to its clusters: F-scores in percent, minus those of the gallery as it is."""

    gallery: str
    change: str
    recall: float
    pairwise_f: float
    bcubed_f: float
    adjusted_rand: float
    one_person: bool


def main(arguments: Sequence[str]) -> None:
    """Measure every change on every gallery, print the table and write the figures of each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks perturbed", description=__doc__)
    shared = ROOT.parent / "shared"
    parser.add_argument("--galleries", type=Path, default=shared / "galleries" / "regimes.py", help="(%(default)s)")
    parser.add_argument("--data", type=Path, default=shared / "data", help="folder of data sets in MS1M's layout")
    parser.add_argument("--names", nargs="*", default=["lfw", "lfw-mixed"], help="data sets of it (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="random changes of each kind (%(default)s)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    if not options.galleries.is_file():
        raise SystemExit(f"no galleries: {options.galleries} does not exist; name a file with --galleries.")

    found = [*read_galleries(load_module(options.galleries)), *labelled_parts(options.data, options.names)]
    changes = [change for gallery in track(found, "galleries") for change in changes_of(gallery, options.seeds)]
    table(changes).print()
    described = machine()
    path = options.results / f"perturbed-{str(described['date'])[:19].replace(':', '-')}.json"
    text = json.dumps({"machine": described, "changes": [asdict(change) for change in changes]}, indent=1) + "\n"
    write_text(path, text)
    Console().print(f"results: {path}")


def labelled_parts(data: Path, names: Sequence[str]) -> Iterator[Gallery]:
    """The evaluation part of each data set ``names`` in the folder ``data``, and the synthetic one."""
    for name in names:
        labels, file = read_labels(data / name / "labels" / f"{PART}.meta"), data / name / "features" / f"{PART}.bin"
        features = read_matrix(file, file.stat().st_size // 4 // len(labels), len(labels))
        yield Gallery(f"{name} {PART}", features, build_knn(features, min(K, len(labels))), labels)
    [part] = build(compose_config("eval", [f"dataset.parts=[{PART}]"]).dataset).load(train=False).evaluation
    yield replace(part, name=f"synthetic {PART}")


def changes_of(gallery: Gallery, seeds: int) -> Iterator[Change]:
    """Each change of `CHANGES`, by ``seeds`` random draws."""
    rule = build_rule(["clustering=unsupervised"])
    labels = rule(gallery, None).labels
    before, one_person = f_scores(gallery.labels_true, labels), len(np.unique(gallery.labels_true)) == 1
    numbered = replace(gallery, labels_true=np.arange(len(gallery)))  # so that faces are known in another order
    for name, change in CHANGES.items():
        if change is approximate and len(gallery) < FEWEST:
            continue
        for seed in range(seeds):
            changed = change(numbered, np.random.default_rng(seed))
            found = np.empty_like(labels)
            found[changed.labels_true] = rule(changed, None).labels
            gained = (f_scores(gallery.labels_true, found) - before).tolist()
            rand = float(adjusted_rand_score(labels, found))
            yield Change(gallery.name, name, _recall(changed, gallery), *gained, rand, one_person)


def f_scores(labels_true: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Pairwise and BCubed F in percent: (2,)."""
    counted = Contingency.of(labels_true, labels)
    return 100 * np.array([pairwise(counted).f_score, bcubed(counted).f_score])


def reordered(gallery: Gallery, rng: np.random.Generator) -> Gallery:
    """The faces in another order; the neighbours are the same ones."""
    order = rng.permutation(len(gallery))
    indices = np.argsort(order)[gallery.graph.indices[order]].astype(np.int32)
    graph = KNNGraph(indices, gallery.graph.similarities[order])
    return replace(gallery, features=gallery.features[order], graph=graph, labels_true=gallery.labels_true[order])


def approximate(gallery: Gallery, rng: np.random.Generator) -> Gallery:
    """With the graph that lcde builds for millions of faces, of a recall as it has there: few cells are searched."""
    faces, probes = reordered(gallery, rng), 1  # in another order, faces train other codes
    while True:
        with mock.patch.object(search, "PROBES", probes), mock.patch.object(search, "Console"):  # it prints the recall
            indices, similarities = search.approximate_search(faces.features, gallery.graph.k)(faces.features)
        if search.recall(indices, faces.graph.indices) >= RECALL or probes >= len(faces):
            return replace(faces, graph=order_neighbours(KNNGraph(indices.astype(np.int32), similarities)))
        probes *= 2


def lacking(gallery: Gallery, rng: np.random.Generator) -> Gallery:
    """Without a tenth of the neighbours of each face; no others take their places."""
    others = gallery.graph.k - 1
    kept = others - round(TENTH * others)
    columns = np.sort(rng.random((len(gallery), others)).argsort(axis=1)[:, :kept]) + 1
    columns = np.column_stack([np.zeros(len(gallery), dtype=np.int64), columns])
    indices = np.take_along_axis(gallery.graph.indices, columns, axis=1)
    return replace(gallery, graph=own_graph(indices, None, gallery.features, kept + 1, "graph"))


def wrong(gallery: Gallery, rng: np.random.Generator) -> Gallery:
    """With random faces in place of a tenth of the neighbours of each face."""
    indices, others = gallery.graph.indices.copy(), gallery.graph.k - 1
    for row in indices:
        strangers = np.setdiff1d(np.arange(len(gallery)), row)  # none where all faces are neighbours
        drawn = rng.choice(strangers, min(round(TENTH * others), len(strangers)), replace=False)
        row[1 + rng.permutation(others)[: len(drawn)]] = drawn
    return replace(gallery, graph=own_graph(indices, None, gallery.features, gallery.graph.k, "graph"))


CHANGES: dict[str, Callable[[Gallery, np.random.Generator], Gallery]] = {
    "another order of the faces": reordered,
    "an approximate graph": approximate,
    "a tenth of neighbours missing": lacking,
    "a tenth of neighbours random": wrong,
}


def table(changes: Sequence[Change]) -> ResultTable:
    """Mean, median and worst change of the F-scores, over the galleries of several people and over those of one."""
    rows = []
    for name in CHANGES:
        for one_person in (False, True):
            own = [change for change in changes if (change.change, change.one_person) == (name, one_person)]
            if own:
                cells = [f"{statistics.mean(change.recall for change in own):.1%}"]
                for attribute in ("pairwise_f", "bcubed_f"):
                    values = [getattr(change, attribute) for change in own]
                    cells += [f"{value:+.2f}" for value in (statistics.mean(values), statistics.median(values))]
                    cells.append(f"{min(values):+.2f}")
                cells.append(f"{statistics.mean(change.adjusted_rand for change in own):.3f}")
                rows.append([name, "one" if one_person else "several", *cells, str(len(own))])
    scores = [f"{score} {value}" for score in ("pairw.", "BCubed") for value in ("mean", "median", "worst")]
    columns = ["change", "people", "recall", *scores, "Rand", "runs"]
    return ResultTable("Change of F-scores (points), and adjusted Rand index to the labels before", columns, rows, 2)


def _recall(changed: Gallery, gallery: Gallery) -> float:
    """Share of the neighbours in ``gallery`` that ``changed``, whose `labels_true` are the faces there, has too."""
    names = changed.labels_true
    back = np.argsort(names)
    return search.recall(names[changed.graph.indices[back]], gallery.graph.indices)
