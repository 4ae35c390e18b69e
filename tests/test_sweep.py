"""What a sweep leaves in its folder, and the one kNN graph of its jobs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lcde.sweep import SweepSummary, largest_k

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["dataset.k=24,40,32", "seed=0,1"], 40),
        (["dataset.k=range(16,41,8)"], 40),
        (["dataset.k=choice(8,4)"], 8),
        (["dataset.k=interval(10,48)"], 48),
        (["dataset.k=choice(8,96)", "dataset.k=16,24"], 24),  # the command line replaces what the sweeper's config says
        (["dataset.k=choice(8,96)", "dataset.k=16"], None),
        (["dataset.k=24", "model.dropout=0.1,0.2"], None),
        (["seed=0,1"], None),
    ],
)
def test_largest_k_of_a_sweep(overrides, expected):
    assert largest_k(overrides) == expected


def part(pairwise: float | None, bcubed: float = 0.5, clusters: int = 7) -> dict:
    scores = {"precision": 0.25, "recall": 0.75}
    labelled = {"pairwise": {**scores, "f_score": pairwise}, "bcubed": {**scores, "f_score": bcubed}, "nmi": 0.875}
    return {**(labelled if pairwise is not None else {}), "clusters": clusters, "seconds": {"knn": 1.0, "total": 2.5}}


@pytest.fixture
def write_job(tmp_path):
    def write(name: str, overrides: list[str], metrics: dict | None) -> Path:
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text("".join(f"- {entry}\n" for entry in overrides))
        if metrics is not None:
            (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
        return tmp_path / name

    return write


def summarise(folder: Path) -> list[dict[str, str]]:
    summary = SweepSummary()
    summary.folder = folder
    summary.summarise()
    return list(csv.DictReader((folder / "sweep.csv").open()))


def test_every_job_and_part_has_a_line(write_job, tmp_path, capsys):
    write_job("10", ["dataset.k=24", "trainer=cpu", "'~baselines'"], {"a": part(0.6, 0.8), "b": part(0.8)})
    write_job("9", ["dataset.k=16", "trainer=cpu"], {"a": part(0.9), "b": part(0.7)})
    write_job("11", ["dataset.k=25", "trainer=cpu"], None)
    rows = summarise(tmp_path)
    assert [(row["job"], row["dataset.k"], row["trainer"], row["part"]) for row in rows] == [
        ("9", "16", "cpu", "a"),
        ("9", "16", "cpu", "b"),
        ("10", "24", "cpu", "a"),
        ("10", "24", "cpu", "b"),
        ("11", "25", "cpu", ""),
    ]
    assert list(rows[2].values())[-9:] == ["0.25", "0.75", "0.6", "0.25", "0.75", "0.8", "0.875", "7", "2.5"]
    assert set(list(rows[4].values())[-9:]) == {""}
    printed = capsys.readouterr().out
    assert printed.index(" 80.00 ") < printed.index(" 70.00 ") < printed.index("no results")
    assert "trainer" not in printed  # it is the same in all jobs
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_metrics_of_an_earlier_sweep_do_not_count(write_job, tmp_path, capsys):
    folder = write_job("0", ["dataset.k=16"], {"a": part(0.9)})
    os.utime(folder / "metrics.json", (0, 0))
    [row] = summarise(tmp_path)
    assert row["pairwise_f_score"] == ""
    assert "no results" in capsys.readouterr().out


def test_jobs_without_labels_are_listed_without_scores(write_job, tmp_path, capsys):
    write_job("0", ["dataset.k=16"], {"custom": part(None, clusters=1234)})
    write_job("1", ["dataset.k=24"], {"custom": part(None)})
    assert [(row["clusters"], row["nmi"]) for row in summarise(tmp_path)] == [("1234", ""), ("7", "")]
    assert "1,234" in capsys.readouterr().out
    assert not (tmp_path / "sweep.png").exists()


def test_no_job_leaves_no_summary(tmp_path):
    summary = SweepSummary()
    summary.folder = tmp_path / "none"
    summary.summarise()
    assert not summary.folder.exists()


def run(script: str, *overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / script), "-m", *overrides], capture_output=True, text=True)


def test_jobs_share_the_graph_of_the_largest_k_and_go_on_after_a_failure(make_part, tmp_path):
    faces = make_part(0, 60, 16, 8)
    np.save(tmp_path / "faces.npy", faces.features)
    np.save(tmp_path / "people.npy", faces.labels_true)
    data = ["dataset=custom", f"dataset.features={tmp_path}/faces.npy", f"dataset.labels={tmp_path}/people.npy"]
    done = run("eval.py", *data, "dataset.k=1,8,12", f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 1
    assert "error: dataset.k=1 must lie between 2 and 59" in done.stderr
    assert "Traceback" not in done.stderr
    assert [file.name for file in (tmp_path / "faces_knns" / "custom").iterdir()] == ["faiss_k_12.npz"]
    rows = list(csv.DictReader((tmp_path / "sweep" / "sweep.csv").open()))
    assert [(row["dataset.k"], row["part"]) for row in rows] == [
        ("1", ""),
        ("8", "custom"),
        ("12", "custom"),
    ]
    metrics = json.loads((tmp_path / "sweep" / "1" / "metrics.json").read_text())["custom"]
    assert float(rows[1]["pairwise_f_score"]) == metrics["pairwise"]["f_score"]
    assert "no results" in done.stdout


def test_optuna_searches_for_the_highest_f(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra/sweeper=search needs the extra sweep")
    tiny = ["dataset.num_identities={part0_train:40,part1_test:30}", "dataset.parts=[part1_test]", "dataset.k=8"]
    tiny += ["model.num_layers=1", "trainer=cpu", "trainer.max_epochs=1", "~baselines.infomap"]
    done = run("train.py", "hydra/sweeper=search", "hydra.sweeper.n_trials=2", *tiny, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["job"] for row in rows] == ["0", "1"]
    assert len({row["model.optimizer.lr"] for row in rows}) == 2
    [best] = [
        line for line in (tmp_path / "optimization_results.yaml").read_text().splitlines() if "best_value" in line
    ]
    assert float(best.split()[1]) == pytest.approx(max(float(row["pairwise_f_score"]) for row in rows), abs=1e-6)
