"""The benchmarks run and keep what they measure; nothing here asserts a time."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import benchmarks.knn
import benchmarks.networks
from benchmarks import ROOT, pipeline, training
from benchmarks.__main__ import BENCHMARKS, cases_of
from benchmarks.graphs import identity_graph, labelings
from benchmarks.measure import Case, Options, Run, summarise
from lcde.models.tokens import tokens

SMALL_PIPELINE = {"NUM_FACES": 150, "IDENTITIES": 50, "FEATURE_DIM": 16, "K": 8, "TRAIN_IDENTITIES": 20}


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """A folder of results where networks were trained for the pipeline."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in SMALL_PIPELINE.items():
            monkeypatch.setattr(pipeline, name, value)
        pipeline.cases(Options(10_000, 10, folder, None, folder, tmp_path_factory.mktemp("scratch")))
    return folder


@pytest.fixture
def options(results, tmp_path, monkeypatch):
    """Options of the smallest benchmarks, without a published program."""
    monkeypatch.setattr(benchmarks.knn, "FEATURE_DIM", 16)
    for name, value in {"FEATURE_DIM": 16, "K": 8, "SIDE": {"cpu": 256, "cuda": 1_024}}.items():
        monkeypatch.setattr(benchmarks.networks, name, value)
    for name, value in SMALL_PIPELINE.items():
        monkeypatch.setattr(pipeline, name, value)
    small = ["dataset.feature_dim=16", "dataset.k=8", "dataset.num_identities={part0_train:60}", "data.batch_size=8"]
    monkeypatch.setattr(training, "SETTINGS", {"D=16, K=8": (small, 2)})
    return Options(10_000, 10, tmp_path / "peer", None, results, tmp_path / "scratch")


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
    assert theirs["ratio"] == pytest.approx(np.median(np.divide(theirs["seconds"], ours["seconds"])))
    for result in kept["results"]:
        assert result["num_faces"] == 10_000
        assert len(result["seconds"]) == 2
        assert result["peak_memory_mb"] > 10
        assert result["contender"] in done.stdout


@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # as lcde does, whose filters pytest resets
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_job_runs(name, options):
    for case in cases_of(name, options):
        for prepare in case.contenders.values():
            figures = prepare()() or {}
            figures = figures.figures if isinstance(figures, Run) else figures
            assert all(np.isfinite(value) for value in figures.values())
            assert figures.get("recall", 1) > 0.5


@pytest.mark.parametrize("name", ["metrics", "pipeline"])
def test_absent_published_program_is_told(name, options, capsys):
    [case] = cases_of(name, options)
    assert "published program" not in case.contenders
    assert "--peer" in capsys.readouterr().out


def test_pipeline_gives_the_labels_of_the_published_program(options, shared):
    peer = shared / "peers" / "lce-pcenet"
    if not peer.is_dir():
        pytest.skip(f"needs the published program in {peer}")
    [case] = pipeline.cases(replace(options, peer=peer))
    runs = {name: prepare()() for name, prepare in case.contenders.items()}
    assert list(runs) == ["lcde, exact", "lcde, fast", "published program"]
    for run in runs.values():
        assert run.seconds > 0
        assert run.peak_memory_mb > 10
    assert runs["published program"].figures["faces not clustered as by exact"] == 0
    assert runs["published program"].figures["BCubed F to exact"] == 1
    assert {"reading", "connectivity", "edges", "pairs", "components"} <= set(runs["lcde, fast"].figures)
    assert runs["published program"].figures["whole process"] > runs["published program"].seconds


def test_networks_of_the_pipeline_are_trained_once_or_given(options):
    [kept] = options.results.iterdir()
    written = kept.stat().st_mtime_ns
    [case] = pipeline.cases(options)
    assert "8 steps" in case.name
    [case] = pipeline.cases(replace(options, checkpoint=kept, results=options.scratch, scratch=options.scratch / "2"))
    assert kept.name in case.name
    assert "steps" not in case.name
    assert [(path.name, path.stat().st_mtime_ns) for path in options.results.iterdir()] == [(kept.name, written)]


def test_differing_labels_are_counted(tmp_path):
    (tmp_path / "labels").mkdir()
    np.savetxt(tmp_path / "labels" / f"{pipeline.PART}.meta", np.zeros(6), fmt="%d")
    pipeline._scores(tmp_path, np.array([0, 0, 1, 1, 2, 2]), pipeline.EXACT)
    figures = pipeline._scores(tmp_path, np.array([5, 5, 0, 0, 0, 1]), "fast")
    assert figures["faces not clustered as by exact"] == 4
    assert 0 < figures["pairwise F to exact"] < 1


def test_copying_loader_serves_the_batches_of_the_data_module(options):
    [(overrides, _)] = training.SETTINGS.values()
    batches = []
    for kind in (training.EdgePairDataModule, training.CopyingData):
        data = training._data(kind, overrides)
        data.trainer = training.Stage()
        batch = next(iter(data.train_dataloader()))
        batches.append((batch, data.on_after_batch_transfer(batch, 0)))
    (_, own), (copied, copies) = batches
    assert all(map(torch.equal, own, copies))
    ends = tokens(own.features.flatten(0, 1)).unflatten(0, (-1, 2))
    for expected, actual in zip((ends[:, 0], ends[:, 1], tokens(own.features.flatten(1, 2))), copied, strict=False):
        torch.testing.assert_close(actual, expected)


def test_ratio_is_of_runs_in_the_same_turn():
    """As the machine gets slower, both contenders do; the ratio of their medians would be another one."""
    seconds = {"a": [1, 2, 4], "b": [4, 6, 11]}
    runs = {name: [Run(value, value, {"turn": i}) for i, value in enumerate(seconds[name])] for name in seconds}
    own, other = summarise(Case("test", "test", 1, dict.fromkeys(seconds)), runs)
    assert (own.seconds, own.median, own.ratio) == (seconds["a"], 2, 1)
    assert (other.ratio, other.peak_memory_mb, other.figures) == (3, 11, {"turn": 2})


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
