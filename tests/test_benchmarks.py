"""The benchmarks run and keep what they measure; nothing here asserts a time."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import benchmarks.knn
from benchmarks.__main__ import BENCHMARKS
from benchmarks.graphs import identity_graph, labelings
from benchmarks.measure import Options

ROOT = Path(__file__).parents[1]


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_command_measures_and_keeps_results(tmp_path):
    (tmp_path / "metrics.py").write_text("def pairwise(labels_true, labels): return 0, 0, 0.25\nbcubed = pairwise\n")
    done = run("metrics", "--largest=10000", "--repeats=2", f"--peer={tmp_path}", f"--results={tmp_path}/kept")
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "kept").glob("*.json")
    assert path.with_suffix(".png").stat().st_size > 0
    kept = json.loads(path.read_text())
    assert kept["settings"] == {"largest": 10_000, "k": 80, "repeats": 2}
    assert {"processor", "cores", "torch", "date"} <= set(kept["machine"])
    ours, theirs = kept["results"]
    assert (ours["contender"], theirs["contender"]) == ("lcde", "published program")
    assert theirs["figures"] == {"pairwise F": 0.25, "BCubed F": 0.25}
    assert theirs["ratio"] == pytest.approx(np.median(theirs["seconds"]) / np.median(ours["seconds"]))
    for result in kept["results"]:
        assert result["num_faces"] == 10_000
        assert len(result["seconds"]) == 2
        assert result["peak_memory_mb"] > 10
        assert result["contender"] in done.stdout


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_job_runs(name, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks.knn, "FEATURE_DIM", 16)
    cases = BENCHMARKS[name](Options(largest=10_000, k=10, peer=tmp_path))
    for case in cases:
        for prepare in case.contenders.values():
            figures = prepare()() or {}
            assert all(np.isfinite(value) for value in figures.values())
            assert figures.get("recall", 1) > 0.5


def test_absent_published_program_is_told(tmp_path, capsys):
    [case] = BENCHMARKS["metrics"](Options(largest=10_000, k=10, peer=tmp_path))
    assert list(case.contenders) == ["lcde"]
    assert "--peer" in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["nothing", "--largest=200", "--k=3"])
def test_wrong_arguments_are_refused(argument, tmp_path):
    done = run(argument, f"--results={tmp_path}")
    assert done.returncode == 2
    assert argument.split("=")[0] in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("num_faces", "k"), [(200, 10), (3_000, 80)])
def test_synthetic_graph_keeps_the_contract(num_faces, k):
    indices, similarities, connectivity, labels = identity_graph(num_faces, k, 0)
    assert (indices.dtype, similarities.dtype, connectivity.dtype) == (np.int32, np.float32, np.float32)
    assert np.array_equal(indices[:, 0], np.arange(num_faces))
    assert indices.min() >= 0
    assert indices.max() < num_faces
    assert all(len(set(row)) == k for row in indices.tolist())
    assert (np.diff(similarities, axis=1) <= 0).all()
    assert ((connectivity >= 0) & (connectivity <= 1)).all()
    friends = labels[indices[:, 1:]] == labels[:, None]
    assert 0.4 < friends.mean() < 0.9
    edges = {(i, j) for i, row in enumerate(indices.tolist()) for j in row[1:] if labels[i] == labels[j]}
    assert np.mean([(j, i) in edges for i, j in edges]) > 0.8


def test_labelings_are_dense():
    for labels in labelings(10_000, 0):
        assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
