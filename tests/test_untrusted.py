"""Files and settings of strangers run no code and write nowhere else."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lcde.commands.scoring import evaluate_parts
from lcde.configuration import build_rule, choose_rule, compose_config
from lcde.data.datasets import IJBB, MS1M, Custom, Parts
from lcde.data.formats import read_knn, read_labels, read_matrix
from lcde.errors import InputError
from lcde.methods.lcde import LCDERule
from lcde.methods.method import Method
from lcde.methods.saved import SavedClustering
from lcde.methods.unsupervised import UnsupervisedRule
from lcde.models.lcde import LCDEModel
from lcde.models.score_cache import CachedScores
from lcde.models.weights import Trained, load_checkpoint, load_published
from lcde.training.checkpoint_io import AtomicCheckpointIO


class Payload:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def save_array(path, payload):
    np.save(path, np.array([payload, payload]), allow_pickle=True)


def save_archive(path, payload):
    evil = np.array([payload, payload])
    names = "features", "labels", "indices", "similarities", "knns", "dists", "rule", "k", "connectivity", "keys"
    np.savez(path, **dict.fromkeys(names, evil))


def save_pickle(path, payload):
    path.write_bytes(pickle.dumps(payload, protocol=2))


def save_torch(path, payload):
    torch.save({"state_dict": {"classifier.0.weight": payload}, "hyper_parameters": {}, "callbacks": payload}, path)


def save_old_torch(path, payload):
    torch.save(payload, path, _use_new_zipfile_serialization=False)


def features(path):
    return read_matrix(path, None)


WRITERS = {"array": save_array, "archive": save_archive, "pickle": save_pickle, "torch": save_torch}
WRITERS["old torch"] = save_old_torch
READERS = {
    "features": (features, ".npy", ("array", "pickle")),
    "features archive": (features, ".npz", ("archive", "pickle")),
    "features tensor": (features, ".pt", ("torch", "old torch", "pickle")),
    "labels": (read_labels, ".npy", ("array", "pickle")),
    "labels archive": (read_labels, ".npz", ("archive", "pickle")),
    "graph": (read_knn, ".npy", ("array", "pickle")),
    "graph archive": (read_knn, ".npz", ("archive", "pickle")),
    "clustering": (SavedClustering.load, ".npz", ("archive", "pickle")),
    "checkpoint": (load_checkpoint, ".ckpt", ("torch", "old torch", "pickle")),
    "weights": (lambda path: load_published(path, path), ".pth", ("torch", "old torch", "pickle")),
    "checkpoint to resume": (AtomicCheckpointIO().load_checkpoint, ".ckpt", ("torch", "old torch", "pickle")),
}


@pytest.mark.parametrize(
    ("read", "ending", "write"),
    [(read, ending, WRITERS[way]) for read, ending, ways in READERS.values() for way in ways],
    ids=[f"{name} as {way}" for name, (*_, ways) in READERS.items() for way in ways],
)
def test_no_file_runs_code(read, ending, write, tmp_path):
    path = tmp_path / f"evil{ending}"
    write(path, Payload(tmp_path / "made"))
    with pytest.raises(InputError, match=r"evil\.\w+ ") as refused:
        read(path)
    assert "weights_only" not in str(refused.value)  # torch advises to switch it off
    assert not (tmp_path / "made").exists()


def test_scores_that_would_run_code_are_computed_anew(tmp_path):
    class Scorer:
        indices = np.zeros((2, 3), dtype=np.int32)

        def chunks(self, items, done):
            yield np.arange(len(items)), np.ones((len(items), 3), dtype=np.float32)

    cached = CachedScores(Scorer, tmp_path, "key")
    for file in (cached.connectivity_file, tmp_path / "key.rows-0.npz"):
        save_archive(file, Payload(tmp_path / "made"))
    assert cached.connectivity().tolist() == [[1, 1, 1]] * 2
    assert not (tmp_path / "made").exists()


EVIL = {"_target_": "os.mkdir", "path": "made"}
RULES = {
    "itself": EVIL,
    "of builtins": {"_target_": "builtins.eval", "_args_": ["__import__('os').mkdir('made')"]},
    "a model": {"_target_": "lcde.models.lcde.LCDEModel"},
    "an argument": {"_target_": "lcde.methods.lcde.LCDERule", "edge_threshold": EVIL},
    "a second pass": {"_target_": "lcde.methods.lcde.LCDERule", "second_pass": EVIL},
    "in a second pass": {
        "_target_": "lcde.methods.lcde.LCDERule",
        "second_pass": {"_target_": "lcde.methods.second_pass.SecondPass", "impostors_per_face": EVIL},
    },
    "in a mapping": {"_target_": "lcde.methods.lcde.LCDERule", "second_pass": {"a": {"b": EVIL}}},
    "in a list": {"_target_": "lcde.methods.lcde.LCDERule", "second_pass": [EVIL]},
    "in a list of lists": {"_target_": "lcde.methods.lcde.LCDERule", "second_pass": [[[EVIL]]]},
    "a positional argument": {"_target_": "lcde.methods.lcde.LCDERule", "_args_": [EVIL]},
    "an interpolation": {"_target_": "lcde.methods.lcde.LCDERule", "edge_threshold": "${oc.env:HOME}"},
    "an interpolation in a list": {"_target_": "lcde.methods.lcde.LCDERule", "edge_threshold": ["${oc.env:HOME}"]},
    "an interpolated target": {"_target_": "${oc.env:HOME}"},
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_checkpoint_builds_nothing_but_its_rule(rule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = LCDEModel(16, 8, 1, 8, 16, 0.1, neighbours_per_end=3, negative_weight=1.0)
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    checkpoint["method"] |= {"name": "lcde", "clustering": rule}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    trained = load_checkpoint(tmp_path / "evil.ckpt")
    for use in (build_rule, lambda trained: choose_rule(compose_config("eval", ["run_dir=x"]), "auto", trained)):
        with pytest.raises(InputError, match=r"evil\.ckpt (names|holds|needs)"):
            use(trained)
    assert not (tmp_path / "made").exists()


def test_an_honest_rule_is_built():
    config = {"_target_": "lcde.methods.lcde.LCDERule", "edge_threshold": 0.25}
    assert build_rule(Trained(None, "lcde", config, "best.ckpt")) == LCDERule(edge_threshold=0.25)


@pytest.mark.parametrize("target", ["antigravity.fly", "idlelib.idle.main", "this.s", "turtle.Turtle"])
def test_modules_that_act_when_they_are_imported_are_not(target, tmp_path):
    torch.save({"state_dict": {}, "method": {"model": {"_target_": target}}}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match=r"evil\.ckpt names .* which is no Model"):
        load_checkpoint(tmp_path / "evil.ckpt")


def test_hyper_parameters_are_not_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = LCDEModel(16, 8, 1, 8, 16, 0.1, neighbours_per_end=3, negative_weight=1.0)
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    checkpoint["method"]["model"] |= {"optimizer": EVIL, "scheduler": EVIL}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    load_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "made").exists()


NAMES = ["", ".", "..", "../x", "/x", "a/b", "a\\b", "..\\x", "a\0b", None, 1.5]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names_of_parts_stay_in_the_folder(name, make_gallery, tmp_path):
    gallery, method = make_gallery(0), Method("unsupervised", UnsupervisedRule())
    for make in (
        lambda: MS1M(str(tmp_path), 8, 16, None, [name]),
        lambda: IJBB(str(tmp_path), 8, 16, None, ["512", name]),
        lambda: evaluate_parts(Parts(None, None, [replace(gallery, name=name)]), method, tmp_path, False),
        *([lambda: MS1M(str(tmp_path), 8, 16, name, [1])] if name else []),
    ):
        with pytest.raises(InputError, match=r"cannot name a part|train_part=1\.5 must be text"):
            make()


def test_the_benchmarks_parts_are_checked_and_named_once(task, tmp_path):
    run = f"hydra.run.dir={tmp_path}"
    for setting, words in (
        ("dataset.held_out_part=../x", "'../x' cannot name a part"),
        ("dataset.parts=[part1_test,part1_test]", "names part1_test twice"),
        ("dataset.parts=[part0_held_out]", "names part0_held_out twice"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{words}"):
            task("eval", setting, "trainer=cpu", run)
    assert not list(tmp_path.glob("**/*.npy"))


def test_names_of_seeds_stay_in_the_folder(lcde, tmp_path):
    with pytest.raises(SystemExit, match=r"error: seeds=\[\.\./\.\./x\] must be whole numbers"):
        lcde("compare", "methods=[hac]", "seeds=[../../x]", f"hydra.run.dir={tmp_path / 'run'}")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_files_may_have_any_name(make_gallery, tmp_path):
    """They are the user's own, beside which graphs are kept."""
    np.save(tmp_path / "a [b] {k}.npy", make_gallery(0).features)
    dataset = Custom(6, features=str(tmp_path / "a [b] {k}.npy"))
    for _ in range(2):
        assert dataset.load(train=False).evaluation[0].name == "custom"
    assert [path.name for path in Path(tmp_path / "a [b] {k}.npy_knns" / "custom").iterdir()] == ["faiss_k_6.npz"]


def test_a_saved_clustering_builds_no_class_by_its_arguments(make_gallery, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gallery = make_gallery(0)
    saved = SavedClustering(gallery.features, gallery.graph, np.zeros(40, dtype=np.int64), 6, UnsupervisedRule())
    saved.save("kept.npz")
    arrays = dict(np.load("kept.npz"))
    for rule in ('{"_target_": "LCDERule", "second_pass": {"_target_": "os.mkdir", "path": "made"}}', "[" * 10**5):
        np.savez("kept.npz", **arrays | {"rule": rule})
        with pytest.raises(InputError, match=r"kept\.npz cannot be read as a clustering"):
            SavedClustering.load("kept.npz")
    assert not Path("made").exists()
