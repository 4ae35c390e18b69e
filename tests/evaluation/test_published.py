import csv

import numpy as np
import pytest

from lcde.evaluation.output import print_published
from lcde.evaluation.published import FILE, measured_rows, published_rows, with_published
from lcde.evaluation.results import Result
from lcde.methods.method import Clustering
from lcde.metrics import Score


def result(part: str, num_faces: int, method: str, f_score: float | None, baseline: bool = False) -> Result:
    score = None if f_score is None else Score(f_score, f_score)
    clustering = Clustering(np.zeros(num_faces, dtype=np.int64))
    return Result(part, method, clustering, {"total": 1.0}, baseline=baseline, pairwise=score, bcubed=score)


def test_file_holds_percentages_once_with_their_source():
    rows = list(csv.DictReader(FILE.open()))
    assert len({(row["part"], row["method"]) for row in rows}) == len(rows)
    assert len({(row["part"], row["faces"], row["benchmark"]) for row in rows}) == len({row["part"] for row in rows})
    for row in rows:
        scores = [float(row[key]) for key in ("pairwise", "bcubed") if row[key]]
        assert scores
        assert all(20 < score < 100 for score in scores)
        assert row["source"]


@pytest.mark.parametrize(
    ("part", "faces", "method", "pairwise", "bcubed"),
    [
        ("part9_test", 5_206_761, "LCDE (paper)", 0.8735, 0.8728),
        ("part1_test", 584_013, "STAR-FC", 0.9197, 0.9021),
        ("part1_test", 584_013, "Infomap", 0.9398, 0.9240),
        ("1024", 36_575, "DANet", np.nan, 0.833),
        ("deepfashion_test", 26_960, "Chen et al. (ECCV 2022)", 0.4091, 0.6361),
    ],
)
def test_published_figures(part, faces, method, pairwise, bcubed):
    [row] = [row for row in published_rows(part, faces) if row.method == method]
    assert (row.pairwise, row.bcubed) == pytest.approx((pairwise, bcubed), nan_ok=True)
    assert row.part == part
    assert not row.emphasised


def test_scores_belong_to_the_benchmark_and_to_no_other_data_of_that_name():
    assert published_rows("part1_test", 584_013 + 5_000)
    assert not published_rows("part1_test", 4207)
    assert not published_rows("custom", 584_013)


def test_measured_stand_before_published_scores_of_their_part():
    results = [result("512", 18_171, "LCDE (paper)", 0.5, baseline=True), result("part1_test", 60, "lcde", 0.9)]
    rows = with_published(results)
    assert {row.part for row in rows} == {"512"}
    assert [row.source for row in rows].count("measured") == 1
    assert (rows[0].method, rows[0].emphasised) == ("LCDE (paper)", False)
    assert not with_published([result("512", 18_171, "lcde", None)])
    assert [row.emphasised for row in measured_rows(results)] == [False, True]


def test_table_sorts_the_measured_among_the_published(capsys):
    print_published([result("512", 18_171, "mine", 0.92), result("512", 18_171, "infomap", 0.5, baseline=True)])
    lines = [line.replace("│", "").split() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert lines[0] == ["LCDE", "(paper)", "93.00", "85.40", "paper", "(CVPR", "2023)"]
    assert lines[1] == ["mine", "92.00", "92.00", "measured"]
    assert lines[4] == ["infomap", "50.00", "50.00", "measured"], "pairwise of L-GCN and DANet are unknown"
    assert all("–" in line for line in lines[5:])


def test_other_data_get_no_table(capsys):
    print_published([result("part1_test", 4207, "lcde", 0.92)])
    assert capsys.readouterr().out == ""
