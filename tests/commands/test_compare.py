"""``lcde compare`` on tiny data: its jobs in this process, and once as a user runs it."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest

from lcde.commands.compare import Job, run, run_jobs
from lcde.files import UNFINISHED
from lcde.report.leaderboard import ranking, write_leaderboard

SMALL = '+settings.lcde=["model.num_layers=1","trainer.max_epochs=1"]'


@pytest.fixture
def prepared(tiny_data, task, monkeypatch):
    """Set up the jobs of a command without running them."""
    monkeypatch.setattr("lcde.commands.compare.run_jobs", lambda jobs: [])
    return lambda *arguments: task("compare", *tiny_data, "trainer=cpu", *arguments)


def table_of(folder):
    with open(folder / "leaderboard.csv", newline="") as file:
        return list(csv.DictReader(file))


def row(method, seed, by, pairwise, bcubed, part="part1_test", **others):
    scores = {
        "pairwise_f_score": pairwise,
        "bcubed_f_score": bcubed,
        "training_seconds": 60.0,
        "seconds": 2.0,
        "faces": 1000,
    }
    of_part = {"part": part, "held_out": "held" in part, "threshold_by": by, "threshold": None, "faces": 1000}
    return {"method": method, "seed": seed, **of_part, **scores, "peak_memory_mb": 500.0, **others}


def test_each_threshold_gets_its_rows(prepared, tmp_path):
    prepared("methods=[components,unsupervised]", "seeds=[3]", f"hydra.run.dir={tmp_path}")
    rows = run(tmp_path / "components" / "3")
    found = [(row["part"], row["threshold_by"]) for row in rows]
    of_parts = [(part, by) for part in ("part1_test", "part2_test") for by in ("held-out", "oracle")]
    assert found == [("part0_held_out", "held-out"), *of_parts]
    thresholds = {(row["part"], row["threshold_by"]): row["threshold"] for row in rows}
    assert len({thresholds[part, "held-out"] for part, _ in found}) == 1
    quality = {(row["part"], row["threshold_by"]): row["pairwise_f_score"] + row["bcubed_f_score"] for row in rows}
    for part in ("part1_test", "part2_test"):
        assert quality[part, "oracle"] >= quality[part, "held-out"] - 0.02  # candidates are those of each gallery
    assert {row["threshold_by"] for row in run(tmp_path / "unsupervised" / "3")} == {"settings"}
    assert {row["training_seconds"] for row in rows} == {0.0}


def test_a_checkpoint_stands_in_for_training(prepared, trained, tmp_path):
    source = shutil.copy(trained[0] / "checkpoints" / "best.ckpt", tmp_path / "model_0.ckpt")
    checkpoint = str(source).replace("model_0", "model_${seed}")
    prepared("methods=[lcde]", "seeds=[0]", f"+checkpoints.lcde='{checkpoint}'", f"hydra.run.dir={tmp_path / 'run'}")
    rows = run(tmp_path / "run" / "lcde" / "0")
    expected = json.loads((trained[0] / "metrics.json").read_text())
    for row in rows:
        assert row["pairwise_f_score"] == expected[row["part"]]["pairwise"]["f_score"]
        assert row["training_seconds"] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["methods=[componets]"], r"methods=\[…\] names componets, which is no choice of model= or clustering=; there"),
        (["model=lcde"], r"lcde compare sets model itself; use methods=\[…\] in place of model=lcde"),
        (["seed=3"], r"lcde compare sets seed itself; use seeds=\[…\] in place of seed=3"),
        (
            ["methods=[hac]", "model.nhead=4"],
            r"hac cannot be set up: .*model.nhead.* alone gets stands in settings\.hac=\[",
        ),
        (["methods=[hac]", "+checkpoints.lcde=a.ckpt"], r"lcde has settings or a checkpoint, but methods=\['hac'\]"),
    ],
)
def test_wrong_settings_are_told_before_any_work(prepared, arguments, sentence, tmp_path):
    with pytest.raises(SystemExit, match=sentence):
        prepared(*arguments, f"hydra.run.dir={tmp_path}")
    assert not list(tmp_path.glob("*/*/job.json"))


def test_a_folder_of_another_comparison_is_refused(prepared, tmp_path):
    prepared("methods=[hac]", "seeds=[0]", f"hydra.run.dir={tmp_path}")
    before = (tmp_path / "hac" / "0" / "job.json").read_text()
    with pytest.raises(SystemExit, match=r"hac/0 holds a job of other settings; name another folder with hydra"):
        prepared("methods=[hac]", "seeds=[0]", "dataset.k=6", f"hydra.run.dir={tmp_path}")
    assert (tmp_path / "hac" / "0" / "job.json").read_text() == before


def test_damaged_results_of_a_job_are_named(prepared, tmp_path):
    prepared("methods=[hac]", "seeds=[0]", f"hydra.run.dir={tmp_path}")
    (tmp_path / "hac" / "0" / "results.json").write_text('[{"part":')
    with pytest.raises(SystemExit, match=r"results\.json cannot be read as results of a job.*; delete it"):
        prepared("methods=[hac]", "seeds=[0]", f"hydra.run.dir={tmp_path}")


def test_methods_are_ranked_by_their_means_over_seeds(tmp_path):
    rows = [row("a", seed, "held-out", 0.5 + 0.1 * seed, 0.7) for seed in (0, 1)]
    rows += [row("a", 0, "settings", 0.4, 0.3), row("a", 0, "oracle", 0.9, 0.95), row("b", 0, "settings", 0.8, 0.9)]
    rows += [row("b", 0, "settings", 0.6, 0.6, part="part0_held_out"), {"method": "c", "seed": 0, "error": "too large"}]
    first, second = ranking(rows, ("part1_test", False))
    assert first[1][1:] == ["b", "80.00", "90.00", "–", "–", "1.0", "2.00", "0.5"]
    assert second[1][1:] == [
        "a",
        "55.00 ± 7.07",
        "70.00 ± 0.00",
        "40.00 / 30.00",
        "90.00 / 95.00",
        "1.0",
        "2.00",
        "0.5",
    ]
    assert second[0].pairwise == pytest.approx(0.55)
    write_leaderboard(rows, tmp_path)
    assert [line["error"] for line in table_of(tmp_path)][-1] == "too large"
    page = (tmp_path / "leaderboard.html").read_text()
    assert "seed 0: too large" in page and page.index("part1_test") < page.index("part0_held_out")
    assert (tmp_path / "leaderboard.png").is_file()


def test_published_scores_stand_beside_measured_ones(tmp_path):
    write_leaderboard([row("a", 0, "settings", 0.9, 0.9, faces=584_013)], tmp_path)
    assert (tmp_path / "published.png").is_file()
    write_leaderboard([row("a", 0, "settings", 0.9, 0.9)], tmp_path / "others")
    assert not (tmp_path / "others" / "published.png").exists()


def test_failures_alone_make_a_table(tmp_path, capsys):
    write_leaderboard([{"method": "<c>", "seed": 0, "error": "no <file>"}], tmp_path, shown=True)
    assert "no <file>" in capsys.readouterr().out
    assert "seed 0: no &lt;file&gt;" in (tmp_path / "leaderboard.html").read_text()


@pytest.fixture
def job_that(tmp_path, monkeypatch):
    """Let a shell script stand in for the interpreter that runs a job."""
    if sys.platform == "win32":
        pytest.skip("Windows has no signals and no shell scripts")

    def make(script):
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))

    return make


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo 'epoch 3 of 8: F 90'; kill -9 $$", 'ended by signal 9 (SIGKILL) after "epoch 3 of 8: F 90"; see {log}'),
        ("exit 3", "ended with exit code 3; see {log}"),
        ("echo 'ValueError: x'; exit 1", 'ended with exit code 1 after "ValueError: x"; see {log}'),
        ("echo 'epoch 1 of 8'; echo 'error: no x' >&2; exit 1", "no x"),
    ],
    ids=["killed", "silent", "traceback", "one sentence"],
)
def test_the_row_of_a_failed_job_says_how_it_ended(script, error, job_that, tmp_path):
    job = Job("hac", 0, tmp_path / "hac" / "0", [], None)
    job.folder.mkdir(parents=True)
    assert job.rows() == [{"method": "hac", "seed": 0, "error": "no results yet"}]
    (job.folder / "log.txt").write_text("epoch 1 of 8\n")  # an interrupted comparison leaves this
    assert job.rows() == [{"method": "hac", "seed": 0, "error": "no results yet"}]
    job_that(script)
    assert list(run_jobs([job])) == [job]
    assert job.rows() == [{"method": "hac", "seed": 0, "error": error.format(log=job.folder / "log.txt")}]


def test_a_comparison_in_which_a_job_failed_ends_with_exit_code_1(lcde, job_that, tiny_data, tmp_path):
    job_that("echo 'error: no x'; exit 1")
    (tmp_path / "cdp" / "0").mkdir(parents=True)
    (tmp_path / "cdp" / "0" / "results.json").write_text("[]")
    with pytest.raises(SystemExit, match=rf"error: 1 of 2 jobs failed; .* hydra\.run\.dir={tmp_path} repeats them"):
        lcde("compare", *tiny_data, "methods=[hac,cdp]", "seeds=[0]", f"hydra.run.dir={tmp_path}")
    assert [line["error"] for line in table_of(tmp_path)] == ["no x"]


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_was_interrupted(tiny_data, lcde, tmp_path):
    arguments = [*tiny_data, "trainer=cpu", SMALL, "methods=[lcde,components,exact]", "seeds=[0]"]
    with pytest.raises(SystemExit, match="1 of 3 jobs failed"):
        lcde("compare", *arguments, f"hydra.run.dir={tmp_path}")
    before = table_of(tmp_path)
    assert "exact needs trained networks" in before[-1]["error"]
    assert {line["method"] for line in before if not line["error"]} == {"lcde", "components"}

    (tmp_path / "lcde" / "0" / "results.json").unlink()
    left = tmp_path / "lcde" / "0" / f".results.json.abc{UNFINISHED}"
    left.write_text("half")
    kept = (tmp_path / "components" / "0" / "results.json").stat().st_mtime_ns
    with pytest.raises(SystemExit, match="1 of 3 jobs failed"):
        lcde("compare", *arguments, f"hydra.run.dir={tmp_path}")
    assert (tmp_path / "components" / "0" / "results.json").stat().st_mtime_ns == kept
    assert not left.exists()
    after = table_of(tmp_path)
    for old, new in zip(before, after, strict=True):
        assert (old["method"], old["pairwise_f_score"]) == (new["method"], new["pairwise_f_score"])
        if old["method"] == "lcde":  # it had been trained
            assert float(new["training_seconds"]) > 0.8 * float(old["training_seconds"]) > 0
    assert np.isfinite([float(line["bcubed_f_score"]) for line in after if not line["error"]]).all()
