"""``lcde compare`` on tiny data: its jobs in this process, and once as a user runs it."""

import csv
import json
import shutil

import numpy as np
import pytest

from lcde.commands.compare import run
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


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_was_interrupted(tiny_data, lcde, tmp_path):
    arguments = [*tiny_data, "trainer=cpu", SMALL, "methods=[lcde,components,exact]", "seeds=[0]"]
    output = lcde("compare", *arguments, f"hydra.run.dir={tmp_path}")
    assert "exact needs trained networks" in " ".join(output.replace("│", " ").split())
    before = table_of(tmp_path)
    assert {line["method"] for line in before if not line["error"]} == {"lcde", "components"}
    assert float(next(line for line in before if line["method"] == "lcde")["training_seconds"]) > 0

    (tmp_path / "components" / "0" / "results.json").unlink()
    left = tmp_path / "components" / "0" / f".results.json.abc{UNFINISHED}"
    left.write_text("half")
    kept = (tmp_path / "lcde" / "0" / "results.json").stat().st_mtime_ns
    lcde("compare", *arguments, f"hydra.run.dir={tmp_path}")
    assert (tmp_path / "lcde" / "0" / "results.json").stat().st_mtime_ns == kept
    assert not left.exists()
    after = table_of(tmp_path)
    for old, new in zip(before, after, strict=True):
        assert (old["method"], old["pairwise_f_score"]) == (new["method"], new["pairwise_f_score"])
    assert np.isfinite([float(line["bcubed_f_score"]) for line in after if not line["error"]]).all()
