"""``lcde eval`` on embeddings of one's own, in this process."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from lcde.commands.scoring import evaluate_baselines
from lcde.data.datasets import Parts
from lcde.errors import InputError
from lcde.methods.classical import ComponentsRule, MapEquationRule


@pytest.fixture
def evaluate(task, tmp_path):
    """Run ``lcde eval dataset=custom``; returns its output and the folder of its results."""

    def run(*overrides):
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        with warnings.catch_warnings():
            warnings.filterwarnings("error", module="lcde")
            warnings.filterwarnings("error", category=RuntimeWarning)
            quick = "dataset=custom", "trainer=cpu", "report=false", "score_cache=null", f"hydra.run.dir={folder}"
            return task("eval", *quick, *overrides), folder

    return run


@pytest.fixture
def write(tmp_path):
    """Save an array and return the override that names its file."""

    def save(key, values):
        np.save(tmp_path / f"{key}.npy", values)
        return f"dataset.{key}={tmp_path / key}.npy"

    return save


@pytest.fixture
def gallery(make_gallery):
    return make_gallery(0, num_faces=120, feature_dim=32, k=8)


def labels_of(folder):
    return np.load(folder / "labels" / "custom.npy")


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize(
    ("faces", "clusters"),
    [
        (np.eye(1, 16), [0]),
        (np.eye(2, 16), [0, 1]),
        (np.ones((12, 16)), [0] * 12),
        (np.eye(5, 16, dtype=np.int64)[[0, 0, 0, 1, 1]], [0, 0, 0, 1, 1]),
        (np.eye(5, 16, dtype=np.float16)[[0, 0, 0, 1, 1]], [0, 0, 0, 1, 1]),
    ],
    ids=["one", "two", "alike", "integers", "half"],
)
def test_few_faces(faces, clusters, with_labels, evaluate, write):
    labels = [write("labels", np.arange(len(faces)) % 2)] if with_labels else []
    _, folder = evaluate(write("features", faces), *labels)
    assert labels_of(folder).tolist() == clusters
    assert ("pairwise" in json.loads((folder / "metrics.json").read_text())["custom"]) == with_labels


@pytest.mark.parametrize("count", [1, 7])
def test_networks_need_more_faces_than_k(count, evaluate, write, gallery, published):
    networks = f"lce_weights={published[0]}", f"pce_weights={published[1]}", "dataset.k=8"
    with pytest.raises(SystemExit, match=rf"error: .*k=8.* {count} faces"):
        evaluate(write("features", gallery.features[:count]), *networks)


@pytest.mark.parametrize("rows", [[[np.nan, 1.0]], [[np.inf, 1.0]], [[0.0, 0.0]], [1.0, 2.0]])
def test_unusable_faces_are_refused(rows, evaluate, write):
    with pytest.raises(SystemExit, match=r"error: .*features\.npy"):
        evaluate(write("features", np.array(rows)))


@pytest.fixture
def training(write, gallery):
    """Labelled training data, of which a share of the identities is held out."""
    return [write("train_features", gallery.features), write("train_labels", gallery.labels_true), "dataset.k=8"]


def test_baselines_take_their_thresholds_from_held_out_identities(evaluate, write, gallery, training):
    data = [write("features", gallery.features), write("labels", gallery.labels_true)]
    _, folder = evaluate(*data, *training)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {part: values.get("held_out", False) for part, values in metrics.items()} == {
        "custom": False,
        "train_held_out": True,
    }
    for values in metrics.values():
        assert set(values["baselines"]) == {"components", "map_equation"}
    assert metrics["custom"]["baselines"]["map_equation"]["pairwise"]["f_score"] > 0.8


def test_baselines_without_a_threshold_need_held_out_identities(gallery):
    parts, others = Parts(None, None, [gallery]), {"map_equation": MapEquationRule()}
    assert evaluate_baselines(parts, {"components": ComponentsRule(), **others}) == []
    [result] = evaluate_baselines(parts, {"components": ComponentsRule(0.5), **others})
    assert result.method == "components"


def test_an_unlabelled_gallery_beside_training_data_is_evaluated_as_itself(
    evaluate, write, gallery, training, tmp_path
):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "face.png")
    (tmp_path / "images.txt").write_text("face.png\n" * len(gallery))
    images = f"dataset.images={tmp_path / 'images.txt'}"
    _, folder = evaluate(write("features", gallery.features), *training, images, "report=true", "~baselines")
    assert "pairwise" not in json.loads((folder / "metrics.json").read_text())["custom"]
    assert "data:image/jpeg" in (folder / "report.html").read_text()


@pytest.mark.parametrize("rule", ["components", "map_equation", "unsupervised"])
def test_every_rule_without_networks_clusters(rule, evaluate, write, gallery):
    threshold = [] if rule == "unsupervised" else ["clustering.threshold=0.6"]
    labels = write("labels", gallery.labels_true)
    output, folder = evaluate(write("features", gallery.features), labels, f"clustering={rule}", *threshold)
    assert json.loads((folder / "metrics.json").read_text())["custom"]["pairwise"]["f_score"] > 0.8
    assert rule in output


def test_a_threshold_is_chosen_or_asked_for(evaluate, write, gallery):
    with pytest.raises(SystemExit, match=r"error: clustering\.threshold"):
        evaluate(write("features", gallery.features), "clustering=components")


@pytest.mark.parametrize("trained", [False, True])
def test_new_faces_are_assigned_and_go_on(trained, evaluate, write, gallery, published, tmp_path):
    networks = (f"lce_weights={published[0]}", f"pce_weights={published[1]}") if trained else ()
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    _, folder = evaluate(write("features", gallery.features[:90]), "dataset.k=8", f"save_to={first}", *networks)
    known = labels_of(folder)

    truth = write("labels", gallery.labels_true[90:119])
    assign = f"assign_to={first}", f"save_to={second}", *networks
    output, folder = evaluate(write("features", gallery.features[90:119]), truth, *assign)
    new = labels_of(folder)
    assert new.shape == (29,)
    assert new.dtype == np.int64
    opened = np.unique(new[new > known.max()])
    assert np.array_equal(opened, known.max() + 1 + np.arange(len(opened)))
    assert f"{(new <= known.max()).sum()} new faces joined existing clusters" in output
    assert f"{(new > known.max()).sum()} opened {len(opened)} new clusters" in output
    values = json.loads((folder / "metrics.json").read_text())["custom"]
    assert values["nodes"] == 29
    assert values["clusters"] == len(np.unique(new))
    assert {"pairwise", "bcubed"} < set(values)
    assert (folder / "config.yaml").is_file()
    if not trained:  # the networks are not
        assert values["pairwise"]["f_score"] > 0.85
        assert values["pairwise"]["precision"] > 0.99

    kept = np.load(second)
    assert np.array_equal(kept["labels"], np.concatenate([known, new]))
    assert kept["indices"].shape == (119, 8)
    _, folder = evaluate(write("features", gallery.features[119:]), f"assign_to={second}", *networks)
    assert labels_of(folder).shape == (1,)
    assert np.array_equal(np.load(first)["labels"], known)


def test_assignment_is_that_of_the_estimator(evaluate, write, gallery, tmp_path):
    from lcde import LCDE

    estimator = LCDE(min_cluster_size=3).fit(gallery.features[:90])
    first = tmp_path / "first.npz"
    evaluate(write("features", gallery.features[:90]), "clustering.min_cluster_size=3", f"save_to={first}")
    _, folder = evaluate(write("features", gallery.features[90:]), f"assign_to={first}")
    assert np.array_equal(labels_of(folder), estimator.assign(gallery.features[90:]))


def test_what_cannot_be_kept_or_assigned_is_refused(evaluate, write, gallery, published, tmp_path):
    kept, features = tmp_path / "kept.npz", write("features", gallery.features)
    networks = f"lce_weights={published[0]}", f"pce_weights={published[1]}"
    for several in ("synthetic", "random_galleries"):
        with pytest.raises(SystemExit, match=r"save_to=… keeps the clustering of one part"):
            evaluate(f"dataset={several}", f"save_to={kept}")
    evaluate(features, f"save_to={kept}", "dataset.k=5")
    before = kept.read_bytes()
    for more in ((), (f"assign_to={kept}",)):
        with pytest.raises(SystemExit, match=r"kept\.npz exists already"):
            evaluate(features, f"save_to={kept}", *more)
    assert kept.read_bytes() == before
    for blocked in ("save_to=", "score_cache="):
        with pytest.raises(SystemExit, match=r"kept\.npz(/file)? cannot be written to"):
            evaluate(features, f"{blocked}{kept}/file", "dataset.k=8", *networks)
    with pytest.raises(SystemExit, match=r"score_cache_gb=abc must be a number"):
        evaluate(features, "score_cache_gb=abc", f"score_cache={tmp_path / 'cache'}", "dataset.k=8", *networks)
    with pytest.raises(SystemExit, match="made without trained networks"):
        evaluate(features, f"assign_to={kept}", *networks)
    with pytest.raises(SystemExit, match="takes its new faces from dataset=custom"):
        evaluate("dataset=synthetic", f"assign_to={kept}")
    with pytest.raises(SystemExit, match=r"dataset\.features is not given"):
        evaluate(f"assign_to={kept}")
    with pytest.raises(SystemExit, match="width of 16, those of the clustering of 32"):
        evaluate(write("features", gallery.features[:, :16]), f"assign_to={kept}")

    trained = tmp_path / "trained.npz"
    evaluate(write("features", gallery.features), f"save_to={trained}", "dataset.k=8", *networks)
    with pytest.raises(SystemExit, match="trained networks made the clustering"):
        evaluate(features, f"assign_to={trained}")
    values = dict(np.load(trained))
    graph = {name: values[name][:, :5] for name in ("indices", "similarities")}
    np.savez(trained, **values | graph | {"k": 5})
    with pytest.raises(SystemExit, match=r"k=8, but assigned, .* a kNN graph of k=5"):
        evaluate(features, f"assign_to={trained}", *networks)


@pytest.mark.parametrize("step", ["__init__", "log_hyperparams"])  # a missing package, a failing login
def test_a_logger_that_cannot_be_used_is_told_before_any_work(step, evaluate, write, gallery, monkeypatch, tmp_path):
    def fail(*arguments, **settings):
        raise InputError("no login")

    monkeypatch.setattr(CSVLogger, step, fail)
    with pytest.raises(SystemExit, match="error: no login"):
        evaluate(write("features", gallery.features), "logger=csv")
    assert not list(tmp_path.glob("run*/labels"))


@pytest.mark.slow
def test_processes_of_a_job_share_the_threads(lcde, tiny_data, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("lcde.commands.entry.limit_threads", asked.append)
    for trainer in ("cpu", "ddp_cpu"):
        settings = "report=false", "clustering=components", "clustering.threshold=0.5", f"hydra.run.dir={tmp_path}"
        lcde("eval", *tiny_data, f"trainer={trainer}", *settings)
    assert asked == [1, 2]
