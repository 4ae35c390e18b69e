"""``lcde train`` on tiny data, in this process."""

import json
import shutil

import numpy as np
import pytest
import torch
from pytorch_lightning import callbacks

from lcde.errors import InputError
from lcde.models.weights import load_checkpoint
from lcde.training.callbacks import Throughput
from lcde.training.resume import moved

PARTS = ("part1_test", "part2_test")


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def history_of(folder):
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["callbacks"]["ClusteringEvaluation"]["history"]


def test_a_run_writes_what_the_docs_list(trained):
    folder, output = trained
    metrics = metrics_of(folder)
    assert set(metrics) == {*PARTS, "part0_held_out"}
    for part, values in metrics.items():
        labels = np.load(folder / "labels" / f"{part}.npy")
        assert labels.dtype == np.int64
        assert set(labels) == set(range(values["clusters"]))
        assert len(labels) == values["nodes"]
        assert {"precision", "recall", "f_score"} == set(values["pairwise"]) == set(values["bcubed"])
        assert {"knn", "connectivity", "edges", "pairs", "components", "total"} <= set(values["seconds"])
        assert {"components", "map_equation"} == set(values["baselines"])
        assert values.get("held_out", False) == (part == "part0_held_out")
        assert values["peak_memory_mb"] > 0
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "report.html").is_file()
    assert "part0_train: 60" in (folder / "config.yaml").read_text()
    assert "map_equation" in output
    lines = [line.split(" F ")[0] for line in output.splitlines() if line.startswith("epoch")]
    assert lines == ["epoch 1 of 2: held-out pairwise", "epoch 2 of 2: held-out pairwise"]
    assert "arning" not in output


def test_held_out_identities_choose_the_checkpoint(trained):
    folder, _ = trained
    epochs = history_of(folder)
    assert not any(name.startswith("lr-") for epoch in epochs for name in epoch)  # of some epochs alone
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
    scores = np.array([epoch["val/f_score"] for epoch in epochs])
    assert best == np.flatnonzero(scores >= scores.max() - 0.01)[-1]  # conf/callbacks/default.yaml has the tolerance
    for part in PARTS:  # evaluation parts are scored at every epoch all the same
        assert all({f"test/{part}/pairwise_f", f"test/{part}/bcubed_f"} <= set(epoch) for epoch in epochs)
    for epoch in epochs:
        assert epoch["val/f_score"] == (epoch["val/pairwise_f"] + epoch["val/bcubed_f"]) / 2
    assert epochs[0]["train/edge_loss_epoch"] != epochs[1]["train/edge_loss_epoch"]


def test_a_checkpoint_names_its_method(trained, lcde, tiny_data, tmp_path):
    folder, _ = trained
    checkpoint = load_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert checkpoint.rule_name == "lcde"
    assert checkpoint.rule_config["_target_"] == "lcde.methods.lcde.LCDERule"
    output = lcde(
        *("eval", *tiny_data, "trainer=cpu", f"checkpoint={folder}/checkpoints/best.ckpt"),
        *("report=false", "score_cache=null", f"hydra.run.dir={tmp_path}"),
    )
    assert "lcde" in output
    epoch = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]  # close to the best score
    best = history_of(folder)[epoch]
    for part, values in metrics_of(tmp_path).items():
        logged = "val" if values.get("held_out") else f"test/{part}"
        assert values["pairwise"]["f_score"] == best[f"{logged}/pairwise_f"]
        assert values["bcubed"]["f_score"] == best[f"{logged}/bcubed_f"]
        assert np.array_equal(np.load(tmp_path / "labels" / f"{part}.npy"), np.load(folder / "labels" / f"{part}.npy"))


def test_a_threshold_that_is_not_set_is_chosen_on_held_out_identities(task, tiny_data, tmp_path):
    model = "model=gcn_v", "model.width=24", "clustering.threshold=null"
    run = "trainer=cpu", "trainer.max_epochs=2", "report=false", "~baselines", f"hydra.run.dir={tmp_path}"
    task("train", *tiny_data, *model, *run)
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    threshold = checkpoint.rule_config["threshold"]
    assert 0 < threshold < 1
    epoch = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
    logged, found = history_of(tmp_path)[epoch], metrics_of(tmp_path)
    assert found["part1_test"]["pairwise"]["f_score"] == logged["test/part1_test/pairwise_f"]
    arguments = [*tiny_data, "trainer=cpu", f"checkpoint={tmp_path}/checkpoints/best.ckpt", "score_cache=null"]
    scores = []
    for other in (threshold, threshold - 0.1, threshold + 0.1):
        folder = f"hydra.run.dir={tmp_path / str(other)}"
        task("eval", *arguments, f"clustering.threshold={other}", "report=false", folder)
        held_out = metrics_of(tmp_path / str(other))["part0_held_out"]
        scores.append(held_out["pairwise"]["f_score"] + held_out["bcubed"]["f_score"])
    assert scores[0] == max(scores)
    assert scores[0] / 2 == pytest.approx(logged["val/f_score"])


def test_a_folder_of_another_run_is_refused(trained, lcde, tiny):
    folder = trained[0]
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(SystemExit, match="holds a run of other settings"):
        lcde("train", *tiny, "trainer.max_epochs=7", f"hydra.run.dir={folder}")
    assert (folder / "config.yaml").read_bytes() == before


@pytest.mark.slow
def test_one_seed_gives_one_result_without_baselines_too(trained, lcde, tiny, tmp_path):
    lcde("train", *tiny, "trainer.max_epochs=2", "~baselines", "report=false", f"hydra.run.dir={tmp_path}")
    assert all(part["baselines"] == {} for part in metrics_of(tmp_path).values())
    for labels in (trained[0] / "labels").iterdir():
        assert np.array_equal(np.load(labels), np.load(tmp_path / "labels" / labels.name))


def test_only_paths_in_a_folder_move_with_it():
    settings = {"run_dir": "/a/run", "epochs": 8, "paths": ["/a/run/checkpoints", "/a/run2", "b/a/run"]}
    paths = ["/c/checkpoints", "/a/run2", "b/a/run"]
    assert moved(settings, "/a/run", "/c") == {"run_dir": "/c", "epochs": 8, "paths": paths}


@pytest.mark.slow
def test_a_run_that_was_moved_goes_on_in_its_new_place(lcde, tiny, tmp_path, monkeypatch):
    """No later epoch is kept: the one that was best lies in the new folder, too."""
    old, new = tmp_path / "old", tmp_path / "new"
    brief = "trainer.max_epochs=2", "+trainer.limit_train_batches=1", "trainer.log_every_n_steps=1"

    def interrupt(self, trainer, *batch):
        if trainer.current_epoch == 1:
            raise InputError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", interrupt)
        with pytest.raises(SystemExit, match="interrupted"):
            lcde("train", *tiny, *brief, "~baselines", "report=false", f"hydra.run.dir={old}")
    state = torch.load(old / "checkpoints" / "last.ckpt", weights_only=True)
    [chosen] = [entry for entry in state["callbacks"].values() if "highest" in entry]
    chosen["highest"] = 2.0
    torch.save(state, old / "checkpoints" / "last.ckpt")
    shutil.move(old, new)
    lcde("train", f"resume={new}")
    assert not old.exists()
    last = torch.load(new / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 1
    [after] = [entry for entry in last["callbacks"].values() if "highest" in entry]
    assert after["best_model_path"] == str(new / "checkpoints" / "best.ckpt")
    assert after["best_model_score"] == chosen["best_model_score"]
    assert set(metrics_of(new)) == {*PARTS, "part0_held_out"}


@pytest.mark.slow
def test_training_starts_from_given_networks(trained, lcde, tiny, tmp_path):
    checkpoint = trained[0] / "checkpoints" / "best.ckpt"
    still = "model.optimizer.lr=0.0", "trainer.max_epochs=1", "+trainer.limit_train_batches=1", "~baselines"
    lcde("train", *tiny, *still, "report=false", f"checkpoint={checkpoint}", f"hydra.run.dir={tmp_path}")
    before, after = (
        torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for folder in (trained[0], tmp_path)
    )
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if "token_head" not in name)


@pytest.mark.slow
def test_features_of_lightning_come_from_the_config(lcde, tiny, tmp_path):
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("needs Lightning 2.6")
    ema = ["+callbacks.ema._target_=pytorch_lightning.callbacks.EMAWeightAveraging", "+callbacks.ema.decay=0.9"]
    steps = ["trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.5"]
    lcde(
        "train", *tiny, "trainer.max_epochs=2", "~baselines", "report=false", *ema, *steps, f"hydra.run.dir={tmp_path}"
    )
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    batches = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]  # of an epoch
    assert state["global_step"] == 2 * -(-batches // 2)
    assert {value.dtype for value in state["state_dict"].values()} == {torch.float32}
    assert "averaging_state" in state


@pytest.fixture
def ms1m(tmp_path, make_gallery):
    """A data set in the layout of MS1M, D = 16."""
    root, gallery = tmp_path / "data", make_gallery(0, 60, 16, 8)
    (root / "features").mkdir(parents=True)
    (root / "labels").mkdir()
    for name in ("part0_train", "part1_test"):
        gallery.features.tofile(root / "features" / f"{name}.bin")
        np.savetxt(root / "labels" / f"{name}.meta", gallery.labels_true, fmt="%d")
    return root


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("train", ["dataset.feature_dim=24"], r"dataset\.feature_dim=24 need .* would be 16"),
        ("train", ["dataset.k=400"], r"dataset\.k=400 must lie between 2 and"),
        ("train", ["dataset.k=7"], r"the nearest K that fits is dataset\.k=8"),
        ("train", ["dataset.val_share=1.5"], r"val_share=1\.5"),
        ("train", ["data.batch_size=0"], r"data\.batch_size=0"),
        ("train", ["model=none"], "model=none has nothing to train"),
        ("train", ["clustering.edge_threshold=7"], r"clustering\.edge_threshold=7"),
        ("train", ["clustering.similarity_threshold=abc"], r"clustering\.similarity_threshold=abc"),
        ("train", ["+data.size=1"], r"data={.*} has a key that lcde\.training.* lacks"),
        ("train", ["model.optimizer.lr=-1"], r"model\.optimizer cannot be used: Invalid learning rate: -1"),
        ("train", ["seed=abc"], "seed=abc must be a whole number"),
        ("eval", ["seed=-1"], "seed=-1 must be a whole number"),
        ("eval", ["clustering=exact"], "clustering=exact needs trained networks"),
        ("eval", ["clustering.density=1"], "clustering=unsupervised has no density; it has "),
        ("eval", ["checkpoint=none.ckpt"], r"none\.ckpt does not exist"),
        ("eval", ["lce_weights=a.pth"], "both lce_weights=… and pce_weights=…"),
        (
            "eval",
            ["clustering=components", "+clustering.density_threshold=1", "clustering.threshold=0.5"],
            "no density",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_bad_settings_end_in_one_sentence(command, arguments, words, ms1m, task, tmp_path):
    data = ["dataset=ms1m", f"dataset.root={ms1m}", "dataset.feature_dim=16", "dataset.k=8", "trainer=cpu"]
    with pytest.raises(SystemExit, match=f"error: .*{words}"):
        task(command, *data, "dataset.val_share=0.4", f"hydra.run.dir={tmp_path}/run", *arguments)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "labels" / "part1_test.meta").unlink(), r"part1_test\.meta does not exist"),
        (lambda root: cut(root / "features" / "part0_train.bin"), r"part0_train\.bin holds 100 bytes"),
    ],
    ids=["missing", "cut"],
)
def test_bad_files_end_in_one_sentence(damage, words, ms1m, task, tmp_path):
    damage(ms1m)
    data = ["dataset=ms1m", f"dataset.root={ms1m}", "dataset.feature_dim=16", "dataset.k=8", "trainer=cpu"]
    with pytest.raises(SystemExit, match=f"error: .*{words}"):
        task("train", *data, f"hydra.run.dir={tmp_path}/run")


@pytest.mark.parametrize("arguments", [["hydra.run.dir"], ["-m", "hydra.sweep.dir"]], ids=["run", "sweep"])
def test_a_folder_that_cannot_be_made_ends_in_one_sentence(arguments, lcde, tmp_path):
    (tmp_path / "file").touch()
    key = arguments[-1]
    with pytest.raises(SystemExit, match=f"error: {key}: {tmp_path}/file/run cannot be written to: Not a directory; "):
        lcde("eval", *arguments[:-1], f"{key}={tmp_path}/file/run")


@pytest.mark.parametrize("content", ["", "callbacks: [", "- a", "\0"], ids=["empty", "cut", "a list", "zeros"])
@pytest.mark.parametrize("file", ["config.yaml", ".hydra/hydra.yaml"])
def test_a_run_whose_settings_are_damaged_is_not_resumed(file, content, trained, task, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "*.ckpt"))
    (tmp_path / "run" / file).write_text(content)
    with pytest.raises(SystemExit, match=rf"error: {tmp_path}/run/{file} (cannot be read as the settings|is empty)"):
        task("train", f"resume={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'again'}")


@pytest.mark.slow
def test_a_run_whose_last_checkpoint_is_damaged_is_not_resumed(trained, lcde, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.raises(SystemExit, match=r"error: .*last\.ckpt cannot be read as a checkpoint"):
        lcde("train", f"resume={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'again'}")


def test_a_checkpoint_of_another_width_is_refused(trained, ms1m, task, tmp_path):
    checkpoint = trained[0] / "checkpoints" / "best.ckpt"
    data = ["dataset=ms1m", f"dataset.root={ms1m}", "dataset.feature_dim=16", "dataset.k=8", "trainer=cpu"]
    for command in ("train", "eval"):
        with pytest.raises(SystemExit, match=r"best\.ckpt was trained with feature_dim=64"):
            task(command, *data, f"checkpoint={checkpoint}", f"hydra.run.dir={tmp_path}/{command}")
