"""What wandb and TensorBoard are told, read back from the files that they leave."""

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from wandb.proto.wandb_internal_pb2 import Record

from lcde.methods.method import Clustering
from lcde.report import plots
from lcde.report.loggers import final_scores, log_config, log_results

ROOT = Path(__file__).parents[2]
TINY = [
    "dataset.num_identities={part0_train:40,part1_test:30,part2_test:30}",
    "dataset.held_out_identities=30",
    "dataset.k=8",
    "model.num_layers=1",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.log_every_n_steps=1",
    "~baselines.map_equation",
]


def records(path: Path) -> Iterator[Record]:
    """What a run told wandb: a log in LevelDB's format, blocks of 32 KiB after a header of 7 bytes."""
    data, at, text = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        text += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(text)
            text = b""


@pytest.fixture
def results(gallery, cluster, result_of):
    """Two evaluation parts, one without identities, held-out identities, and a baseline called "LCDE" before them."""
    clustering, singletons = cluster(gallery), Clustering(np.arange(len(gallery)))
    held_out = replace(gallery, name="h", held_out=True)
    return [
        result_of(gallery, singletons, "LCDE", baseline=True),
        result_of(held_out, clustering),
        result_of(gallery, clustering),
        result_of(replace(gallery, name="b"), singletons),
        result_of(replace(gallery, name="unknown", labels_true=None), clustering),
    ]


def test_final_scores_are_of_evaluated_methods_and_keep_held_out_identities_apart(results):
    _, held_out, first, second, _ = results
    scores = final_scores(results)
    places = {"final", "final/faces", "final/b", "final/held_out"}
    assert set(scores) == {f"{place}/{name}" for place in places for name in ("pairwise_f", "bcubed_f")}
    assert scores["final/faces/pairwise_f"] == first.pairwise.f_score
    assert scores["final/held_out/bcubed_f"] == held_out.bcubed.f_score
    assert scores["final/bcubed_f"] == pytest.approx((first.bcubed.f_score + second.bcubed.f_score) / 2)
    assert final_scores([]) == {}


MONITORS = {"val/pairwise_f": 0, "nothing": 1}  # the last job fails in training


@pytest.fixture(scope="module")
def wandb(start, tmp_path_factory):
    """Folder and environment of a sweep with wandb, and exit code and output of the command."""
    folder, home = tmp_path_factory.mktemp("wandb"), tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(home), "MPLCONFIGDIR": str(folder)}
    jobs = [f"callbacks.checkpoint.monitor={','.join(MONITORS)}", "logger=wandb", "logger.mode=offline"]
    command = ["train", "-m", *TINY, *jobs, f"hydra.sweep.dir={folder}/both"]
    return folder, environment, start(*command, folder=folder, environment=environment).end()


@pytest.mark.slow
def test_each_job_of_a_sweep_is_a_finished_run_of_wandb(wandb):
    sweep, environment, (exit_code, output) = wandb
    assert exit_code == 1
    assert "nothing" in output
    assert "WARN" not in output
    assert not os.listdir(environment["HOME"])
    assert not (sweep / "wandb").exists()
    for job, (monitor, exit_code) in enumerate(MONITORS.items()):
        folder = sweep / "both" / str(job)
        [file] = (folder / "wandb").glob("offline-run-*/run-*.wandb")
        entries = list(records(file))
        [run] = [entry.run for entry in entries if entry.HasField("run")]
        assert (run.display_name, run.run_group, run.project) == (f"both/{job}", "both", "lcde")
        assert [entry.exit.exit_code for entry in entries if entry.HasField("exit")] == [exit_code]
        config = {item.key: json.loads(item.value_json) for entry in entries for item in entry.config.update}
        assert config["callbacks"]["checkpoint"]["monitor"] == monitor
        assert config["model"]["k"] == config["dataset"]["k"] == 8
        if exit_code:
            continue

        metrics = json.loads((folder / "metrics.json").read_text())
        items = [item for entry in entries for item in entry.summary.update]
        summary = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
        logged = {item.nested_key[0] for entry in entries for item in entry.history.item if item.nested_key}
        held_out = {part for part, values in metrics.items() if "held_out" in values}
        assert held_out == {"part0_held_out"}
        for part, values in metrics.items():
            final, epochs = ("held_out", "val") if part in held_out else (part, f"test/{part}")
            for measure in ("pairwise", "bcubed"):
                assert summary[f"final/{final}/{measure}_f"] == values[measure]["f_score"]
                assert f"{epochs}/{measure}_f" in logged
        scores = [values["pairwise"]["f_score"] for part, values in metrics.items() if part not in held_out]
        assert summary["final/pairwise_f"] == np.mean(scores)
        assert {"train/pairs_per_second", "train/edge_loss_epoch", "lr-AdamW"} <= logged
        figures = {f"figures/{image.stem}" for image in (folder / "figures").iterdir()}
        assert figures == {name for name in logged if name.startswith("figures/")}
        [table] = file.parent.glob("files/media/table/results*.json")
        rows = json.loads(table.read_text())["data"]
        assert {(row[0], row[1], row[3]) for row in rows} == {
            (part, name, name != "lcde") for part in metrics for name in ("lcde", "components")
        }
        assert {(row[0], row[6]) for row in rows if not row[3]} == {
            (part, values["pairwise"]["f_score"]) for part, values in metrics.items()
        }


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_same_run_of_wandb(wandb, start):
    sweep, environment, _ = wandb
    run = sweep / "both" / "0"
    exit_code, output = start("train", f"resume={run}", folder=sweep, environment=environment).end()
    assert exit_code == 0, output
    assert "WARN" not in output
    files = list(run.rglob("run-*.wandb"))
    assert len(files) == 2
    assert len({run.run_id for file in files for run in (entry.run for entry in records(file)) if run.run_id}) == 1


@pytest.mark.slow
def test_tensorboard_has_scores_figures_and_the_configuration(results, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="logger=tensorboard needs tensorboard"
    )
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", ["logger=tensorboard", f"logger.save_dir={tmp_path}", "~callbacks", "~trainer"])
    config.run_dir = str(tmp_path)
    config.data = None
    loggers = [instantiate(config.logger)]
    plots.save_figures({"sizes": plots.cluster_sizes(np.arange(3))}, tmp_path / "figures")
    log_config(loggers, config)
    log_results(loggers, results, tmp_path)

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    [last] = events.Scalars("final/faces/pairwise_f")
    assert last.value == pytest.approx(results[2].pairwise.f_score)
    assert events.Tags()["images"] == ["figures/sizes"]
    table = events.Tensors("results/text_summary")[0].tensor_proto.string_val[0].decode()
    header, _, *lines = (line.split(" | ") for line in table.splitlines())
    roles = [[result.part, result.method, str(result.held_out), str(result.baseline)] for result in results]
    assert [line[:4] for line in lines] == roles
    assert header[:4] == ["part", "method", "held_out", "baseline"]
    assert float(lines[2][header.index("bcubed_f_score")]) == results[2].bcubed.f_score
    assert lines[4][4:11] == ["None"] * 7, "identities are unknown"
    hparams = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"dataset/num_identities/part0_train" in hparams
