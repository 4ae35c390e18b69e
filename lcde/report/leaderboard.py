"""The leaderboard of ``lcde compare``: ``leaderboard.csv``, ``leaderboard.png``, ``leaderboard.html`` and a table.

A row is a dict of "method", "seed", and either "error" or what `lcde.commands.compare.run` gives.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lcde.evaluation.output import COLUMNS, part_title, print_rows
from lcde.evaluation.published import ScoreRow, published_rows
from lcde.files import write_text
from lcde.report import plots
from lcde.report.html import write_page

Row = dict[str, Any]

COST = ("training_seconds", "peak_memory_mb", "gpu_memory_mb")
FIELDS = ("method", "seed", "part", "held_out", "threshold_by", "threshold", "faces", *COLUMNS, *COST, "error")
SHOWN = ("part", "method", "pairwise F", "BCubed F", "as set", "oracle", "minutes", "s / 1,000", "GB")
CAPTION = (
    "F in percent, mean ± standard deviation over seeds. Thresholds are chosen on held-out identities; beside them the "
    "F-scores (pairwise / BCubed) with the threshold as set, and with the best one of the part itself, which nobody "
    "knows beforehand (oracle). Minutes of training, seconds a thousand faces, largest memory."
)


def write_leaderboard(rows: Sequence[Row], folder: Path, shown: bool = False) -> None:
    """Write the files into ``folder``, and print the table if it is ``shown``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "leaderboard.csv", text.getvalue())
    ranked = [ranking(rows, part) for part in parts_of(rows)]
    failures = [["–", row["method"], f"seed {row['seed']}: {row['error']}"] for row in rows if "error" in row]
    lines = [[cells for _, cells in of_part] for of_part in ranked]
    lines += [[cells + [""] * (len(SHOWN) - len(cells)) for cells in failures]] if failures else []
    scores = [score for of_part in ranked for score, _ in of_part]
    title = "F-scores by method, thresholds by held-out identities: longer bars are better"
    figures = {"leaderboard": plots.method_comparison(scores, title)} if scores else {}
    published = [row for part in dict.fromkeys(map(_part_and_faces, rows)) for row in published_rows(*part)]
    if published:
        of_parts = [score for score in scores if score.part in {row.part for row in published}]
        figures["published"] = plots.method_comparison([*of_parts, *published])
    values = {"caption": CAPTION, "columns": SHOWN, "groups": lines, "figures": plots.save_figures(figures, folder)}
    write_page(folder / "leaderboard.html", "leaderboard.html.j2", values)
    if shown:
        print_rows(SHOWN, [[(cells, False) for cells in of_part] for of_part in lines])
        print(CAPTION)


def parts_of(rows: Sequence[Row]) -> list[tuple[str, bool]]:
    """The parts that have scores, held-out ones last, and whether they are held out."""
    parts = dict.fromkeys((row["part"], row["held_out"]) for row in rows if row.get("pairwise_f_score") is not None)
    return sorted(parts, key=lambda part: part[1])


def ranking(rows: Sequence[Row], part: tuple[str, bool]) -> list[tuple[ScoreRow, list[str]]]:
    """Mean scores over seeds and cells of `SHOWN` of each method on ``part``, the best method first."""
    name, lines = part_title(*part), []
    of_part = [row for row in rows if row.get("part") == part[0] and row["pairwise_f_score"] is not None]
    for method in dict.fromkeys(row["method"] for row in of_part):
        by: dict[str, list[Row]] = {"settings": [], "held-out": [], "oracle": []}
        for row in of_part:
            if row["method"] == method:
                by[row["threshold_by"]].append(row)
        main = by["held-out"] or by["settings"]
        if not main:
            continue
        pairwise, bcubed = (_values(main, f"{measure}_f_score") for measure in ("pairwise", "bcubed"))
        both = [f"{100 * values.mean():.2f}" + _spread(100 * values) for values in (pairwise, bcubed)]
        beside = [_both(by["settings"]) if by["held-out"] else "–", _both(by["oracle"])]
        score = ScoreRow(name, method, float(pairwise.mean()), float(bcubed.mean()), emphasised=True)
        lines.append((score, [name, method, *both, *beside, *_cost(main)]))
    return sorted(lines, key=lambda line: -line[0].pairwise - line[0].bcubed)


def _part_and_faces(row: Row) -> tuple[str, int]:
    return row.get("part", ""), row.get("faces", 0)


def _values(rows: Sequence[Row], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows], dtype=np.float64)


def _spread(values: np.ndarray) -> str:
    return f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""


def _both(rows: Sequence[Row]) -> str:
    scores = [_values(rows, f"{measure}_f_score") for measure in ("pairwise", "bcubed")]
    return " / ".join(f"{100 * values.mean():.2f}" for values in scores) if rows else "–"


def _cost(rows: Sequence[Row]) -> list[str]:
    """Minutes of training, seconds a thousand faces, gigabytes."""
    minutes = _values(rows, "training_seconds").mean() / 60
    seconds = (1000 * _values(rows, "seconds") / _values(rows, "faces")).mean()
    memory = max(row.get(key) or 0 for row in rows for key in ("peak_memory_mb", "gpu_memory_mb"))
    return [f"{minutes:.1f}" if minutes else "–", f"{seconds:.2f}", f"{memory / 1000:.1f}" if memory else "–"]
