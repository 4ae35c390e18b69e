"""What a sweep leaves in its folder, and which of its jobs is the best."""

import csv
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from lcde.report.sweep import SweepSummary


def part(pairwise: float | None, bcubed: float = 0.5, clusters: int = 7, held_out: bool = False) -> dict:
    scores = {"precision": 0.25, "recall": 0.75}
    labelled = {"pairwise": {**scores, "f_score": pairwise}, "bcubed": {**scores, "f_score": bcubed}, "nmi": 0.875}
    values = {"method": "lcde", "clusters": clusters, "seconds": {"knn": 1.0, "total": 2.5}, "baselines": {}}
    return {**({"held_out": True} if held_out else {}), **(labelled if pairwise is not None else {}), **values}


@pytest.fixture
def write_job(tmp_path):
    def write(name: str, overrides: list[str], metrics: dict | None, **config: object) -> Path:
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text("".join(f"- {entry}\n" for entry in overrides))
        OmegaConf.save(config, tmp_path / name / "config.yaml")
        if metrics is not None:
            (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
        return tmp_path / name

    return write


@pytest.fixture
def small_figure(monkeypatch):
    """Drawing takes most of the time of tests that are about something else."""
    monkeypatch.setattr("lcde.report.plots.sweep_scores", lambda rows: Figure(figsize=(1, 1)))


def summarise(folder: Path) -> list[dict[str, str]]:
    summary = SweepSummary()
    summary.folder = folder
    summary.summarise()
    return list(csv.DictReader((folder / "sweep.csv").open()))


def order_of_jobs(printed: str) -> list[str]:
    return re.findall(r"^│ +(\w+) │", printed, re.MULTILINE)


def test_every_job_and_part_has_a_line(write_job, tmp_path, capsys):
    held_out = part(0.3, held_out=True)
    write_job("10", ["dataset.k=24", "trainer=cpu", "'~baselines'"], {"a": part(0.6, 0.8), "b": held_out})
    write_job("9", ["dataset.k=16", "trainer=cpu"], {"a": part(0.9), "b": {**held_out, "clusters": 9}})
    write_job("11", ["dataset.k=25", "trainer=cpu"], None)
    rows = summarise(tmp_path)
    assert [(row["job"], row["dataset.k"], row["trainer"], row["part"], row["held_out"]) for row in rows] == [
        ("9", "16", "cpu", "a", "False"),
        ("9", "16", "cpu", "b", "True"),
        ("10", "24", "cpu", "a", "False"),
        ("10", "24", "cpu", "b", "True"),
        ("11", "25", "cpu", "", ""),
    ]
    assert list(rows[2].values())[-9:] == ["0.25", "0.75", "0.6", "0.25", "0.75", "0.8", "0.875", "7", "2.5"]
    assert set(list(rows[4].values())[-9:]) == {""}
    printed = capsys.readouterr().out
    assert "no results" in printed
    assert "trainer" not in printed, "it is the same in all jobs"
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_jobs_are_ranked_on_held_out_identities_never_on_evaluation_parts(write_job, tmp_path, small_figure, capsys):
    write_job("0", ["k=8"], {"a": part(0.9, 0.9), "h": part(0.5, 0.5, held_out=True)})
    write_job("1", ["k=16"], {"a": part(0.1, 0.1), "h": part(0.6, 0.8, held_out=True)})
    write_job("2", ["k=24"], {"a": part(0.8, 0.8), "h": part(0.7, 0.7, held_out=True)})
    write_job("3", ["k=32"], None)
    summarise(tmp_path)
    printed = capsys.readouterr().out
    assert order_of_jobs(printed) == ["1", "2", "0", "3"]
    assert "Best on held-out identities: 1" in printed
    assert "70.00 │      10.00" in printed
    page = (tmp_path / "sweep.html").read_text()
    rows = re.findall(r"<tr( class=.evaluated.)?><td class=.num.>(\d)", page)
    assert [(job, bool(best)) for best, job in rows] == [("1", True), ("2", False), ("0", False), ("3", False)]


def test_without_held_out_identities_no_job_is_the_best(write_job, tmp_path, small_figure, capsys):
    write_job("0", ["k=8"], {"a": part(0.5)})
    write_job("1", ["k=16"], {"a": part(0.9)})
    summarise(tmp_path)
    printed = capsys.readouterr().out
    assert order_of_jobs(printed) == ["0", "1"]
    assert "none is marked as the best" in printed
    page = (tmp_path / "sweep.html").read_text()
    assert "none is marked as the best" in page
    assert 'class="evaluated"' not in page


def test_page_stands_alone_and_escapes_settings(write_job, tmp_path):
    write_job("0", ["name='<b>'"], {"a": part(0.5)})
    write_job("1", ["name=other"], {"a": part(0.5)})
    summarise(tmp_path)
    page = (tmp_path / "sweep.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert re.findall(r'src="(.{22})', page) == ["data:image/png;base64,"]
    assert "http" not in re.sub('base64,[^"]*', "", page)


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
    assert summary.summarise() is None
    assert not summary.folder.exists()


@pytest.mark.parametrize(
    ("config", "reported"),
    [({"assign_to": None, "report": True}, ["1"]), ({"assign_to": None, "report": False}, []), ({"report": True}, [])],
)
def test_the_best_job_of_eval_gets_its_report(write_job, tmp_path, monkeypatch, small_figure, config, reported):
    for job, score in enumerate((0.5, 0.9, 0.6)):
        write_job(str(job), [f"k={job}"], {"h": part(score, score, held_out=True)}, **config)
    for job in range(3):
        hydra = {"overrides": {"task": [f"k={job}", "logger=wandb"]}, "runtime": {"config_sources": []}}
        OmegaConf.save({"hydra": hydra}, tmp_path / str(job) / ".hydra" / "hydra.yaml")
    commands = []
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr("subprocess.run", lambda command, **settings: commands.append(command[2:]) or done)
    summary, hydra = SweepSummary(), OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    summary.on_multirun_start(hydra)
    summary.on_multirun_end(hydra)
    assert commands == [[f"k={job}", f"hydra.run.dir={tmp_path / job}"] for job in reported]
    assert (tmp_path / "sweep.html").is_file()


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failure(start, make_gallery, tmp_path):
    faces = make_gallery(0, 60, 16, 8)
    np.save(tmp_path / "faces.npy", faces.features)
    np.save(tmp_path / "people.npy", faces.labels_true)
    data = ["dataset=custom", f"dataset.features={tmp_path}/faces.npy", f"dataset.labels={tmp_path}/people.npy"]
    exit_code, output = start("eval", "-m", *data, "dataset.k=1,8,12", f"hydra.sweep.dir={tmp_path}/sweep").end()
    assert exit_code == 1
    assert "dataset.k=1 " in output
    assert "Traceback" not in output
    rows = list(csv.DictReader((tmp_path / "sweep" / "sweep.csv").open()))
    assert [(row["dataset.k"], row["part"]) for row in rows] == [("1", ""), ("8", "custom"), ("12", "custom")]
    metrics = json.loads((tmp_path / "sweep" / "1" / "metrics.json").read_text())["custom"]
    assert float(rows[1]["pairwise_f_score"]) == metrics["pairwise"]["f_score"]
    assert "no results" in output


@pytest.mark.slow
def test_optuna_searches_for_the_highest_f_on_held_out_identities(lcde, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra/sweeper=search needs the extra sweep")
    data = ["dataset.num_identities={part0_train:40,part1_test:30}", "dataset.parts=[part1_test]", "dataset.k=8"]
    brief = ["dataset.held_out_identities=30", "model.num_layers=1", "trainer=cpu", "trainer.max_epochs=1"]
    search = ["hydra/sweeper=search", "hydra.sweeper.n_trials=2", "~baselines", "report=false"]
    lcde("train", "-m", *search, *data, *brief, f"hydra.sweep.dir={tmp_path}")
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert {row["job"] for row in rows} == {"0", "1"}
    assert len({row["model.optimizer.lr"] for row in rows}) == 2
    held_out = [row for row in rows if row["held_out"] == "True"]
    scores = [(float(row["pairwise_f_score"]) + float(row["bcubed_f_score"])) / 2 for row in held_out]
    found = (tmp_path / "optimization_results.yaml").read_text()
    assert float(re.search(r"best_value: (.*)", found)[1]) == pytest.approx(max(scores), abs=1e-6)
