"""Published F-scores on the public benchmarks, from ``published.csv``, to stand beside measured ones."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lcde.evaluation.results import Result

FILE = Path(__file__).with_name("published.csv")  # F-scores in percent, empty where not published


@dataclass(frozen=True)
class ScoreRow:
    """F-scores of one method on one part, measured or published.

    Attributes
    ----------
    part, method : str
    pairwise, bcubed : float
        F-scores as fractions, NaN where unknown.
    emphasised : bool
        Whether this is the method that is evaluated, rather than a baseline or a published method.
    source : str
        Where the figures come from.
    """

    part: str
    method: str
    pairwise: float
    bcubed: float
    emphasised: bool = False
    source: str = "measured"


def published_rows(part: str, num_faces: int) -> list[ScoreRow]:
    """Published scores of the benchmark part of that name and (within 1 %) that many faces; empty for other data."""
    rows = []
    with FILE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["part"] == part and abs(num_faces / int(row["faces"]) - 1) <= 0.01:
                pairwise, bcubed = (float(row[key] or "nan") / 100 for key in ("pairwise", "bcubed"))
                rows.append(ScoreRow(part, row["method"], pairwise, bcubed, source=row["source"]))
    return rows


def measured_rows(results: Sequence[Result]) -> list[ScoreRow]:
    """Scores of those ``results`` whose identities are known, in their order."""
    return [
        ScoreRow(result.part, result.method, result.pairwise.f_score, result.bcubed.f_score, not result.baseline)
        for result in results
        if result.pairwise is not None and result.bcubed is not None
    ]


def with_published(results: Sequence[Result]) -> list[ScoreRow]:
    """Measured, then published scores of each part that has both; empty for data of the user's own."""
    rows = []
    for part, faces in {result.part: len(result.clustering.labels) for result in results}.items():
        measured = measured_rows([result for result in results if result.part == part])
        published = published_rows(part, faces)
        if measured and published:
            rows += [*measured, *published]
    return rows
