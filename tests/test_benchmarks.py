"""The benchmarks run and write what they measure; no test asserts a time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import benchmarks.knn
import benchmarks.networks
from benchmarks import ROOT, ablation, busy, galleries, gpu, perturbed, pipeline, rehearsal, soak, sweep, training
from benchmarks.__main__ import BENCHMARKS, cases_of
from benchmarks.graphs import identity_features, identity_graph, labelings
from benchmarks.measure import Case, Options, Run, summarise
from lcde.configuration import build, compose_config
from lcde.data.gallery import Gallery
from lcde.errors import InputError
from lcde.methods.lcde import LCDERule
from lcde.models.tokens import tokens

SMALL_PIPELINE = {"NUM_FACES": 150, "IDENTITIES": 50, "FEATURE_DIM": 16, "K": 8, "TRAIN_IDENTITIES": 20}
SMALL = ["dataset.feature_dim=16", "dataset.k=8", "dataset.num_identities={part0_train:60}", "data.batch_size=8"]


def small_options(folder, results):
    return Options(10_000, 10, folder / "peer", None, None, results, folder / "scratch")


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """A folder of results where networks were trained for the pipeline."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in SMALL_PIPELINE.items():
            monkeypatch.setattr(pipeline, name, value)
        pipeline.cases(small_options(tmp_path_factory.mktemp("scratch"), folder))
    return folder


@pytest.fixture
def options(results, tmp_path, monkeypatch):
    """Options of the smallest benchmarks, without a published program."""
    monkeypatch.setattr(benchmarks.knn, "FEATURE_DIM", 16)
    for name, value in {"FEATURE_DIM": 16, "K": 8, "SIDE": {"cpu": 256, "cuda": 1_024}}.items():
        monkeypatch.setattr(benchmarks.networks, name, value)
    for name, value in SMALL_PIPELINE.items():
        monkeypatch.setattr(pipeline, name, value)
    monkeypatch.setattr(training, "SETTINGS", {"D=16, K=8": (SMALL, 2)})
    monkeypatch.setattr(sweep, "THRESHOLDS", ["0.5", "0.6"])
    for name, value in {
        "OVERRIDES": SMALL,
        "SECONDS": 1,
        "POLICIES": {"passive": {"OMP_WAIT_POLICY": "passive"}},
    }.items():
        monkeypatch.setattr(busy, name, value)
    return small_options(tmp_path, results)


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_command_measures_and_writes_results(tmp_path):
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # as lcde does, whose filters pytest resets
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_job_runs(name, options):
    for case in cases_of(name, options):
        jobs = [prepare() for prepare in case.contenders.values()]
        with ThreadPoolExecutor(2) as pool:  # for jobs that wait for processes
            done = list((pool.map if name in ("busy", "sweep") else map)(lambda job: job(), jobs))
        for run in done:
            figures = run.figures if isinstance(run, Run) else run or {}
            assert all(np.isfinite(value) for value in figures.values())
            assert figures.get("recall", 1) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics", "pipeline"])
def test_missing_published_program_is_reported(name, options, capsys):
    [case] = cases_of(name, options)
    assert "published program" not in case.contenders
    assert "--peer" in capsys.readouterr().out


@pytest.mark.slow
def test_pipeline_gives_the_labels_of_the_published_program(options, shared):
    peer = shared / "peers" / "lce-pcenet"
    if not peer.is_dir():
        pytest.skip(f"needs the published program in {peer}")
    [case] = pipeline.cases(replace(options, peer=peer))
    runs = {name: prepare()() for name, prepare in case.contenders.items()}
    assert list(runs) == ["lcde, clustering=exact", "lcde, clustering=lcde", "published program"]
    for run in runs.values():
        assert run.seconds > 0
        assert run.peak_memory_mb > 10
    assert runs["published program"].figures["faces not clustered as by exact"] == 0
    assert runs["published program"].figures["BCubed F to exact"] == 1
    assert {"reading", "connectivity", "edges", "pairs", "components"} <= set(runs["lcde, clustering=lcde"].figures)
    assert runs["published program"].figures["whole process"] > runs["published program"].seconds


@pytest.mark.slow
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
    figures = pipeline._scores(tmp_path, np.array([5, 5, 0, 0, 0, 1]), "another")
    assert figures["faces not clustered as by exact"] == 4
    assert 0 < figures["pairwise F to exact"] < 1


def test_copying_loader_serves_the_batches_of_the_data_module():
    overrides = SMALL
    batches = []
    for kind in (training.EdgePairDataModule, training.CopyingData):
        data = training.read_data(kind, overrides)
        data.trainer = training.Stage(build(compose_config("train", overrides).model))
        batch = next(iter(data.train_dataloader()))
        batches.append((batch, data.on_after_batch_transfer(batch, 0)))
    (_, own), (copied, copies) = batches
    assert all(map(torch.equal, own[:-1], copies[:-1]))
    ends = tokens(own.features.flatten(0, 1)).unflatten(0, (-1, 2))
    for expected, actual in zip((ends[:, 0], ends[:, 1], tokens(own.features.flatten(1, 2))), copied, strict=False):
        torch.testing.assert_close(actual, expected)


def test_ratio_compares_runs_of_the_same_turn():
    """When the machine gets slower, both contenders do; the ratio of their medians would be another one."""
    seconds = {"a": [1, 2, 4], "b": [4, 6, 11]}
    runs = {name: [Run(value, value, {"turn": i}) for i, value in enumerate(seconds[name])] for name in seconds}
    own, other = summarise(Case("test", "test", 1, dict.fromkeys(seconds)), runs)
    assert (own.seconds, own.median, own.ratio) == (seconds["a"], 2, 1)
    assert (other.ratio, other.peak_memory_mb, other.figures) == (3, 11, {"turn": 1})


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["nothing", "--largest=200", "--k=3"])
def test_wrong_arguments_are_refused(argument, tmp_path):
    done = run(argument, f"--results={tmp_path}")
    assert done.returncode == 2
    assert argument.split("=")[0] in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("num_faces", "k"), [(200, 10), (3_000, 80)])
def test_synthetic_graph_has_the_form_of_a_real_one(num_faces, k):
    graph, connectivity, labels = identity_graph(num_faces, k, 0)
    indices, similarities = graph.indices, graph.similarities
    assert (indices.dtype, similarities.dtype, connectivity.dtype) == (np.int32, np.float32, np.float32)
    assert np.array_equal(indices[:, 0], np.arange(num_faces))
    assert indices.min() >= 0
    assert indices.max() < num_faces
    assert all(len(set(row)) == k for row in indices.tolist())
    assert (np.diff(similarities, axis=1) <= 0).all()
    assert ((connectivity >= 0) & (connectivity <= 1)).all()
    genuine = labels[indices[:, 1:]] == labels[:, None]
    assert 0.4 < genuine.mean() < 0.9
    edges = {(i, j) for i, row in enumerate(indices.tolist()) for j in row[1:] if labels[i] == labels[j]}
    assert np.mean([(j, i) in edges for i, j in edges]) > 0.8


def test_labelings_are_dense():
    for labels in labelings(10_000, 0):
        assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))


def test_cost_of_further_jobs_is_read_from_their_folders(tmp_path):
    jobs = [tmp_path / name for name in "012"]
    for written, (folder, seconds) in enumerate(zip(jobs, (9.0, 1.0, 2.0), strict=True)):
        folder.mkdir()
        parts = {"part1_test": {"seconds": {"total": seconds}}, "held_out": {"seconds": {"total": 0.5}}}
        (folder / "metrics.json").write_text(json.dumps(parts))
        os.utime(folder / "metrics.json", (0, 100 + 3 * written))
    assert sweep.further_jobs(jobs) == {"seconds per further job": 3, "clustering": 2, "beside it": 1}


def test_busy_process_ends_with_its_block():
    with busy.busy_process() as process:
        assert process.poll() is None
    assert process.returncode is not None


@pytest.mark.slow
def test_steps_on_a_gpu_are_written_one_by_one(options, tmp_path, monkeypatch):
    for module in (gpu, benchmarks.networks):
        monkeypatch.setattr(module, "FEATURE_DIM", 16)
        monkeypatch.setattr(module, "K", 8)
    monkeypatch.setattr(gpu, "SIZES", dict.fromkeys(("cpu", "cuda"), gpu.Size(600, 40, 400, 16, 5)))

    def tests(self):
        raise RuntimeError("1 failed")

    monkeypatch.setattr(gpu.Steps, "tests", tests)
    with pytest.raises(SystemExit, match="failed: tests"):
        gpu.main([f"--results={tmp_path}/kept"])
    [file] = (tmp_path / "kept").glob("gpu-*.json")
    results = json.loads(file.read_text())["results"]
    assert list(results) == ["peak", "networks", "knn", "training", "labels"]
    assert all(np.isfinite(value) for figures in results.values() for value in figures.values())
    assert results["knn"]["recall"] > 0.999
    assert results["training"]["pairs per second"] > 0
    assert 0 < results["labels"]["BCubed F"] <= 1


def test_a_rehearsal_has_the_shape_of_ms1m(tmp_path, capsys):
    rehearsal.main([str(tmp_path), "--share=0.002"])
    assert "part0_train: 1,153 faces of 17 people" in capsys.readouterr().out
    data = build(compose_config("train", ["dataset=ms1m", f"dataset.root={tmp_path}", "dataset.k=16"]).dataset)
    parts = data.load(train=True)
    [part1] = parts.evaluation
    assert (len(part1), len(np.unique(part1.labels_true)), part1.features.shape[1]) == (1_168, 17, 256)
    assert parts.train is not None
    assert np.allclose(np.linalg.norm(part1.features, axis=1), 1, atol=1e-5)
    same = part1.labels_true[part1.graph.indices] == part1.labels_true[:, None]
    assert 0.8 < same[:, 1:4].mean() < 1
    with pytest.raises(InputError, match=r"part0_train\.bin exists already"):
        rehearsal.main([str(tmp_path), "--share=0.002"])


def test_the_parts_of_a_rehearsal_differ_in_their_people(tmp_path):
    rehearsal.main([str(tmp_path), "--share=0.001", "--parts", "part1_test", "part3_test"])
    first, third = (np.fromfile(tmp_path / "features" / f"part{n}_test.bin", "<f4").reshape(-1, 256) for n in (1, 3))
    assert len(third) == 1_740
    assert (third @ first.T).max() < 0.8
    labels = np.loadtxt(tmp_path / "labels" / "part1_test.meta", dtype=int)
    assert set(labels) == set(range(9))


REGIMES = """
import numpy as np

def galleries():
    rng = np.random.default_rng(0)
    for name, people in (("a/few", 3), ("a/many", 6), ("b/one", 1)):
        labels = np.repeat(np.arange(people), 10)
        yield name, (np.eye(8)[labels] + 0.1 * rng.standard_normal((len(labels), 8))).astype(np.float32), labels

def quality(labels_true, labels):
    return 100 * np.mean(labels >= 0) - np.abs(len(np.unique(labels_true)) - len(np.unique(labels)))

def oracles():
    return {"a/few": 100.0, "a/many": 101.0, "b/one": 100.0}
"""


def test_ablation_without_labels(tmp_path, capsys):
    (tmp_path / "regimes.py").write_text(REGIMES)
    ablation.main([f"--galleries={tmp_path}/regimes.py", f"--results={tmp_path}"])
    [file] = tmp_path.glob("ablation-*.json")
    quality = json.loads(file.read_text())["unsupervised"]["quality"]
    assert list(quality) == [*ablation.UNSUPERVISED, "HDBSCAN, min_cluster_size=2", "HDBSCAN, min_cluster_size=5"]
    assert all(list(values) == ["a/few", "a/many", "b/one"] for values in quality.values())
    assert quality["HDBSCAN, min_cluster_size=5"]["a/many"] == 100
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*quality, "few", "many", "one person"))


def test_methods_without_labels_are_compared_on_all_galleries(tmp_path, capsys):
    (tmp_path / "regimes.py").write_text(REGIMES)
    galleries.main([f"--galleries={tmp_path}/regimes.py", f"--results={tmp_path}", "--methods", "hac", "hdbscan"])
    [file] = tmp_path.glob("galleries-*.json")
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    quality = json.loads(file.read_text())["quality"]
    by = "hac, threshold of other embedders", "hac (oracle threshold)"
    assert list(quality) == ["unsupervised", *by, "hdbscan", galleries.INFOMAP]
    assert all(quality[by[1]][name] >= max(quality[by[0]][name], 50) for name in quality[by[0]])
    assert "mean quality by regime" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has 'nowhere' in its name"):
        galleries.main([f"--galleries={tmp_path}/regimes.py", f"--results={tmp_path}", "--only=nowhere"])


@pytest.mark.slow
def test_flawed_graphs_are_compared_with_exact_ones(tmp_path, capsys, monkeypatch):
    (tmp_path / "regimes.py").write_text(REGIMES)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(80), 8)
    features = rng.standard_normal((80, 32))[labels] + 0.5 * rng.standard_normal((640, 32))
    for kind in ("features", "labels"):
        (tmp_path / "made" / kind).mkdir(parents=True)
    features.astype(np.float32).tofile(tmp_path / "made" / "features" / "part1_test.bin")
    np.savetxt(tmp_path / "made" / "labels" / "part1_test.meta", labels, fmt="%d")
    given = [next(perturbed.labelled_parts(tmp_path, ["made"]))]  # without the synthetic part, which is larger
    monkeypatch.setattr(perturbed, "labelled_parts", lambda *_: given)
    perturbed.main([f"--galleries={tmp_path}/regimes.py", f"--results={tmp_path}", "--seeds=1"])
    [file] = tmp_path.glob("perturbed-*.json")
    changes = json.loads(file.read_text())["changes"]
    assert len(changes) == 4 * 4 - 3  # too few faces for an approximate graph
    for change in changes:
        assert change["one_person"] == (change["gallery"] == "b/one")
        assert -100 <= change["pairwise_f"] <= 100 and change["adjusted_rand"] <= 1
    made = {change["change"]: change for change in changes if change["gallery"] == "made part1_test"}
    recalls = [change["recall"] for change in made.values()]
    assert recalls == [1, pytest.approx(0.95, abs=0.05), pytest.approx(0.9), pytest.approx(0.9)]
    assert all(change["adjusted_rand"] > 0.9 for change in made.values())
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("adjusted Rand", *perturbed.CHANGES))


def test_a_gallery_in_another_order_is_the_same_gallery(make_gallery):
    gallery = replace(make_gallery(0), labels_true=np.arange(40))
    moved = perturbed.reordered(gallery, np.random.default_rng(0))
    order = moved.labels_true
    assert np.array_equal(moved.features, gallery.features[order])
    assert np.array_equal(order[moved.graph.indices], gallery.graph.indices[order])
    assert np.array_equal(moved.graph.similarities, gallery.graph.similarities[order])


def test_thresholds_are_those_of_other_embedders():
    low, high = np.array([90.0, 10.0]), np.array([10.0, 80.0])
    by_gallery = {"a/x": low, "a-mixed/x": low, "b/x": high, "b/one": low, "c/x": high}
    assert galleries.chosen_elsewhere(by_gallery) == {"a/x": 1, "a-mixed/x": 1, "b/x": 0, "b/one": 0, "c/x": 0}
    assert galleries.chosen_elsewhere({"a/x": low}) == {"a/x": 0}


def test_ablation_tables_summarise_quality_and_regret():
    quality = {"method": {"a/x": 90.0, "b/x": 70.0, "a/y": 50.0, "a/one": 30.0}}
    oracle = {"a/x": 95.0, "b/x": 80.0, "a/y": 80.0, "a/one": 99.0}
    overall, regimes = ablation.unsupervised_tables(quality, oracle, {"a/one"})
    assert overall.rows == [["method", "70.0", "70.0", "50.0", "15.0", "10.0", "30.0", "30.0", "30.0"]]
    assert (regimes.columns, regimes.rows) == (["method", "x", "y"], [["method", "80.0", "50.0"]])
    assert "| method | 80.0 | 50.0 |" in regimes.markdown().splitlines()


def test_ablation_compares_variants_with_the_first_checkpoint_by_checkpoint():
    scores = [
        ablation.TrainedScore("lfw", "part1_test", variant, checkpoint, f_score, f_score, 10, 1.0)
        for checkpoint, f_scores in (("seed0", (0.9, 0.8)), ("seed1", (0.7, 0.8)))
        for variant, f_score in zip(("lcde", "exact"), f_scores, strict=True)
    ]
    rows = ablation.trained_table(scores).rows
    assert [row[1:5] for row in rows] == [
        ["lcde", "80.00", "80.00", "+0.00 (+0.00 … +0.00)"],
        ["exact", "80.00", "80.00", "+0.00 (-10.00 … +10.00)"],
    ]


def test_variants_of_the_ablation_differ_from_the_rule_in_one_setting():
    rules = {name: ablation.build_rule(overrides) for name, overrides in ablation.TRAINED.items()}
    full = rules.pop("lcde")
    assert rules.pop("exact (the paper's rule)") == LCDERule()
    for rule in rules.values():
        assert sum(getattr(rule, field.name) != getattr(full, field.name) for field in fields(rule)) == 1


@pytest.mark.slow
def test_ablation_of_trained_networks(results, tmp_path, monkeypatch, capsys):
    [checkpoint] = results.iterdir()
    graph, _, labels = identity_graph(200, 8, 0)
    gallery = Gallery("small", identity_features(labels, 16, 0), graph, labels)
    monkeypatch.setattr(ablation, "labelled_galleries", lambda *_: [gallery])
    checkpoints = [f"synthetic={checkpoint}", f"absent={checkpoint}"]
    arguments = ["--galleries=none.py", f"--data={tmp_path}", f"--results={tmp_path}", "--checkpoints", *checkpoints]
    ablation.main(arguments)
    [file] = tmp_path.glob("ablation-*.json")
    scores = json.loads(file.read_text())["trained"]
    assert [score["variant"] for score in scores] == list(ablation.TRAINED)
    edges = {score["variant"]: score["edges"] for score in scores}
    assert edges["lcde"] <= edges["ask_strong=true"]
    printed = capsys.readouterr().out
    assert "absent is left out" in printed
    assert "none.py does not exist" in printed


LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


@LINUX
@pytest.mark.slow
def test_a_tiny_soak_ends_as_the_undisturbed_run(tiny, tmp_path, monkeypatch, capsys):
    for name, value in {
        "SETTINGS": [*tiny, "report=false", "~baselines"],
        "PROBE": 2,
        "FEWEST": 6,
        "BETWEEN_KILLS": 2,
        "MOST_GROWTH": np.inf,  # caches fill
    }.items():
        monkeypatch.setattr(soak, name, value)
    soak.main(["--minutes=0", "--seed=1", f"--results={tmp_path}"])
    [file] = tmp_path.glob("soak-*.json")
    kept = json.loads(file.read_text())
    assert kept["failures"] == []
    assert kept["settings"]["epochs"] == 6
    *killed, last = kept["killed"]
    assert killed and all(process["exit_code"] == -signal.SIGKILL for process in killed)
    assert (last["exit_code"], last["stages"][-1]["name"]) == (0, soak.RESULTS)
    stages = [stage["name"] for stage in kept["undisturbed"]["stages"]]
    assert stages == [soak.START, *[soak.TRAINING, soak.EVALUATION, soak.CHECKPOINTS] * 6, soak.RESULTS]
    assert min(kept["undisturbed"]["memory_mb"][1:]) > 10
    assert "the same weights, history, scores, labels and files" in capsys.readouterr().out


@pytest.mark.slow
def test_whatever_differs_after_a_soak_is_told(trained, tmp_path):
    folder = trained[0]
    for name in ("same", "other"):
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "same" / "2026-01-31_12-00-00" / "csv").mkdir(parents=True)  # of an attempt that was resumed
    (tmp_path / "same" / "2026-01-31_12-00-00" / "csv" / "metrics.csv").write_text("other times")
    assert list(soak.differences(folder, tmp_path / "same")) == []

    other = tmp_path / "other"
    (other / "checkpoints" / ".last.ckpt.abc.unfinished").write_bytes(b"half")
    scores = json.loads((other / "metrics.json").read_text())
    scores["part1_test"]["nmi"] += 1e-9
    (other / "metrics.json").write_text(json.dumps(scores))
    labels = np.load(other / "labels" / "part2_test.npy")
    np.save(other / "labels" / "part2_test.npy", labels[::-1])
    last = torch.load(other / "checkpoints" / "last.ckpt", weights_only=True)
    weight = next(iter(last["state_dict"].values()))
    weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    last["callbacks"]["ClusteringEvaluation"]["history"][0]["val/f_score"] += 1e-9
    torch.save(last, other / "checkpoints" / "last.ckpt")
    assert list(soak.differences(folder, other)) == [
        "the killed run left checkpoints/.last.ckpt.abc.unfinished and lacks none",
        "the scores in metrics.json differ",
        "the labels of part2_test differ",
        "state_dict of last.ckpt differs",
        "the history in last.ckpt differs",
    ]
    (other / "metrics.json").unlink()
    assert len(list(soak.differences(folder, other))) == 1


def test_growth_of_memory_is_measured_after_the_warm_up():
    for growth, failed in ((0.01, False), (1.0, True)):
        memory = [100 * min(epoch, 5) + growth * epoch for epoch in range(20)]
        stages = [soak.Stage(soak.TRAINING, epoch, value) for epoch, value in enumerate(memory)]
        measured = soak.Growth.of(soak.Process(stages))
        assert measured.mb_per_epoch == pytest.approx(growth)
        assert measured.share == pytest.approx(14 * growth / np.mean(memory[5:]))
        assert bool(list(measured.failures())) == failed


def test_a_kill_comes_after_the_stage_has_begun_often_enough():
    names = [soak.START, *[soak.TRAINING, soak.EVALUATION] * 3]
    stages = [soak.Stage(name, second, 1.0) for second, name in enumerate(names)]
    kill = soak.Kill(soak.EVALUATION, 1, 2.5)
    assert not kill.is_due(stages, 6.4)
    assert kill.is_due(stages, 6.6)
    assert not kill.is_due(stages[:4], 6.6)


@LINUX
def test_memory_of_a_process_group_counts_children():
    code = "import subprocess, sys; data = b'1' * 10**8; {}; print(flush=True); sys.stdin.read()"
    child = "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=-1); child.stdout.readline()"
    command = [sys.executable, "-c", code.format(child), code.format("pass")]
    with subprocess.Popen(command, stdin=-1, stdout=-1, start_new_session=True) as process:
        process.stdout.readline()
        assert 200 < soak.resident_mb(process.pid) < 400
        process.stdin.close()
    for _ in range(1_000):
        if not soak.resident_mb(process.pid):  # its child ends when it reads the end of its input
            break
        time.sleep(0.01)
    assert soak.resident_mb(process.pid) == 0
