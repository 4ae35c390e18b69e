import numpy as np
import pytest

from lcde import report
from lcde.evaluation import Result
from lcde.metrics import Score
from lcde.published import BENCHMARKS, FACES, published_scores, ranks


def result(part: str, num_faces: int, method: str, precision: float, recall: float) -> Result:
    score = Score(precision, recall)
    return Result(part, method, np.zeros(num_faces, dtype=np.int64), None, score, score, 1.0, {"total": 1.0}, 1.0)


def test_every_part_of_a_benchmark_is_known():
    assert {part for parts, _ in BENCHMARKS for part in parts} == set(FACES)
    for parts, methods in BENCHMARKS:
        assert all(len(pairwise) == len(bcubed) == len(parts) for pairwise, bcubed in methods.values())


def test_scores_belong_to_the_benchmark_and_to_no_other_data_of_that_name():
    assert published_scores("part9_test", 5_206_761)["LCDE (paper)"] == pytest.approx((0.8735, 0.8728))
    assert published_scores("part1_test", 4207) == {}
    assert published_scores("custom", 584_013) == {}


def test_ranks_skip_what_was_not_published():
    assert ranks([0.5, float("nan"), 0.9, 0.5]) == [2, None, 1, 2]


def test_table_ranks_the_measured_among_the_published(capsys):
    report.print_published([result("512", 18_171, "LCDE", 0.92, 0.92), result("512", 18_171, "infomap", 0.5, 0.5)])
    lines = [line.replace("│", "").split() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert lines[1] == ["LCDE", "92.00", "2", "92.00", "1"]
    assert lines[0][:3] == ["LCDE", "(paper)", "93.00"]


def test_other_data_get_no_table_and_no_figure(capsys):
    results = [result("part1_test", 4207, "LCDE", 0.92, 0.92)]
    report.print_published(results)
    assert capsys.readouterr().out == ""
    assert set(report.method_figures(results)) == {"methods"}
    assert set(report.method_figures([result("512", 18_171, "LCDE", 0.9, 0.9)])) == {"methods", "published"}
