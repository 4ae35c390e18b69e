"""Pairwise and BCubed F-scores of given labels, beside the published program's functions."""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.graphs import labelings
from benchmarks.measure import Case, Options
from lcde.metrics import Contingency, bcubed, pairwise

SEED = 0
LARGEST = 500_000  # labels; with more, the published functions take too long for a benchmark


def cases(options: Options) -> list[Case]:
    """One case of the largest size, at most `LARGEST` labels."""
    contenders: dict[str, Callable] = {"lcde": _ours}
    file = options.peer / "metrics.py"
    if file.is_file():
        contenders["published program"] = partial(_theirs, file=file)
    else:
        Console().print(f"metrics: no published program to compare with, {file} does not exist; see --peer")
    num_faces = min(options.largest, LARGEST)
    prepares = {name: partial(prepare, num_faces) for name, prepare in contenders.items()}
    return [Case("metrics", "pairwise, BCubed", num_faces, prepares)]


def _ours(num_faces: int) -> Callable[[], dict[str, float]]:
    labels_true, labels = labelings(num_faces, SEED)

    def job() -> dict[str, float]:
        table = Contingency.of(labels_true, labels)
        return {"pairwise F": pairwise(table).f_score, "BCubed F": bcubed(table).f_score}

    return job


def _theirs(num_faces: int, file: Path) -> Callable[[], dict[str, float]]:
    specification = importlib.util.spec_from_file_location("published_metrics", file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    labels_true, labels = labelings(num_faces, SEED)

    def job() -> dict[str, float]:
        return {
            "pairwise F": float(module.pairwise(labels_true, labels)[2]),
            "BCubed F": float(module.bcubed(labels_true, labels)[2]),
        }

    return job
