import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from lcde.evaluation import output
from lcde.evaluation.output import print_table, write_results
from lcde.evaluation.results import Result, score
from lcde.methods.method import Clustering

TRUE = np.array([0, 0, 1, 1])


def result(part="a", method="lcde", labels=(0, 0, 1, 2), noise=None, labels_true=TRUE, **roles) -> Result:
    clustering = Clustering(np.array(labels), noise=None if noise is None else np.array(noise))
    return replace(score(part, method, clustering, {"knn": 0.5, "total": 2.5}, labels_true), **roles)


@pytest.fixture
def write(tmp_path):
    def write(*results):
        write_results(results, tmp_path)
        return json.loads((tmp_path / "metrics.json").read_text())

    return write


def test_metrics_hold_the_evaluated_method_and_its_baselines(write):
    metrics = write(result(method="zero", labels=(0, 0, 0, 0), baseline=True), result(method="mine"))
    [(part, values)] = metrics.items()
    assert (part, values["method"], values["nodes"], values["clusters"]) == ("a", "mine", 4, 3)
    assert values["pairwise"] == {"precision": 1.0, "recall": 0.5, "f_score": pytest.approx(2 / 3)}
    assert set(values["bcubed"]) == set(values["pairwise"])
    assert values["seconds"] == {"knn": 0.5, "total": 2.5}
    assert {"nmi", "peak_memory_mb"} <= set(values)
    assert values["baselines"]["zero"]["clusters"] == 1
    assert "held_out" not in values


def test_held_out_parts_are_marked_and_come_last(write):
    metrics = write(result("b_held_out", held_out=True), result("b", labels_true=None))
    assert list(metrics) == ["b", "b_held_out"]
    assert metrics["b_held_out"]["held_out"] is True
    assert not {"pairwise", "bcubed", "nmi", "held_out"} & set(metrics["b"])


def test_labels_are_those_of_the_evaluated_method(write, tmp_path):
    baseline = result(labels=(0, 0, 0, 0), method="zero", baseline=True)
    write(baseline, result())
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["a.npy"]
    assert np.load(tmp_path / "labels" / "a.npy").tolist() == [0, 0, 1, 2]
    with pytest.raises(ValueError, match="unpack"):
        write(baseline)


def test_noise_is_minus_one_in_labels_and_counted(write, tmp_path):
    noisy = result(noise=(True, True, False, False))
    assert write(noisy, result("b"))["a"]["noise"] == 2
    labels = np.load(tmp_path / "labels" / "a.npy")
    assert labels.tolist() == [-1, -1, 0, 1]
    assert labels.dtype == np.int64
    assert np.load(tmp_path / "labels" / "b.npy").tolist() == [0, 0, 1, 2]


def test_labels_of_new_faces_keep_the_numbers_of_known_clusters(write, tmp_path):
    write(result(labels=(7, 7, 3, 3)))
    assert np.load(tmp_path / "labels" / "a.npy").tolist() == [7, 7, 3, 3]


def test_table_lists_evaluation_parts_before_held_out_ones(capsys):
    held_out = result("h", held_out=True), result("h", "infomap", held_out=True, baseline=True)
    print_table([*held_out, result("[red]e", "single", baseline=True), result("[red]e", "lcde"), result("u")])
    lines = [line.replace("│", "").split() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    names = [" ".join(line[:-13]) for line in lines]
    assert names == ["[red]e lcde", "[red]e single", "u lcde", "h (held out) lcde", "h (held out) infomap"]
    assert lines[0][2:7] == ["100.00", "/", "50.00", "/", "66.67"]


def test_no_column_of_a_long_table_is_cut(capsys):
    print_table([result("part0_held_out", "unsupervised", held_out=True)])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "part0_held_out │ unsupervised │ 100.00 /" in printed


def test_the_role_not_the_name_or_the_place_makes_a_method_bold(capsys, monkeypatch):
    terminal = Console(force_terminal=True, width=140, color_system="standard")
    monkeypatch.setattr(output, "Console", lambda width: terminal)
    print_table([result(method="LCDE", baseline=True), result(method="mine"), result(method="yours")])
    bold = re.findall(r"\x1b\[1m *(mine|yours|LCDE)", capsys.readouterr().out)
    assert bold == ["mine", "yours"]


def test_table_without_identities_has_no_scores(capsys):
    print_table([result(labels_true=None)])
    assert "a lcde – – – 3 2.5" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_files_are_replaced_whole(write, tmp_path):
    write(result("a"))
    write(result("a", labels=(0, 0, 0, 0)), result("b"))
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "labels"}
    assert np.load(tmp_path / "labels" / "a.npy").tolist() == [0, 0, 0, 0]
