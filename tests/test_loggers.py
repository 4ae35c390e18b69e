"""What wandb and TensorBoard are told, read back from the files that they leave."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from wandb.proto.wandb_internal_pb2 import Record

from lcde import plots
from lcde.clustering.classical import ThresholdComponents
from lcde.evaluation import choose_thresholds, evaluate_baselines
from lcde.loggers import log_config, log_results

ROOT = Path(__file__).parents[1]
TINY = [
    "dataset.num_identities={part0_train:40,part1_test:30,part2_test:30}",
    "dataset.k=8",
    "model.num_layers=1",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.log_every_n_steps=1",
    "~baselines.infomap",
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


def test_each_job_of_a_sweep_is_a_finished_run_of_wandb(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    variables |= {"HOME": str(home), "MPLCONFIGDIR": str(tmp_path)}
    jobs = ["data.batch_size=64,32,0", "logger=wandb", "logger.mode=offline"]  # the last one fails in training
    command = [sys.executable, str(ROOT / "train.py"), "-m", *TINY, *jobs, f"hydra.sweep.dir={tmp_path}/both"]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "batch_size" in done.stderr
    assert "WARN" not in done.stdout + done.stderr
    assert not list(home.iterdir())
    assert not (tmp_path / "wandb").exists()
    for job, batch_size, exit_code in (("0", 64, 0), ("1", 32, 0), ("2", 0, 1)):
        folder = tmp_path / "both" / job
        [file] = (folder / "wandb").glob("offline-run-*/run-*.wandb")
        entries = list(records(file))
        [run] = [entry.run for entry in entries if entry.HasField("run")]
        assert (run.display_name, run.run_group, run.project) == (f"both/{job}", "both", "lcde")
        assert [entry.exit.exit_code for entry in entries if entry.HasField("exit")] == [exit_code]
        config = {item.key: json.loads(item.value_json) for entry in entries for item in entry.config.update}
        assert config["data"]["batch_size"] == batch_size
        assert config["model"]["k"] == config["dataset"]["k"] == 8
        if exit_code:
            continue

        metrics = json.loads((folder / "metrics.json").read_text())
        items = [item for entry in entries for item in entry.summary.update]
        summary = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
        logged = {item.nested_key[0] for entry in entries for item in entry.history.item if item.nested_key}
        for part, values in metrics.items():
            for measure in ("pairwise", "bcubed"):
                assert summary[f"final/{part}/{measure}_f"] == values[measure]["f_score"]
                assert f"val/{part}/{measure}_f" in logged
        assert summary["final/pairwise_f"] == np.mean([values["pairwise"]["f_score"] for values in metrics.values()])
        assert {"train/pairs_per_second", "train/edge_loss_epoch", "lr-AdamW"} <= logged
        figures = {f"figures/{image.stem}" for image in (folder / "figures").iterdir()}
        assert figures == {name for name in logged if name.startswith("figures/")}
        [table] = file.parent.glob("files/media/table/results*.json")
        rows = json.loads(table.read_text())["data"]
        assert {(row[0], row[1]) for row in rows} == {
            (part, name) for part in metrics for name in ("LCDE", "components")
        }
        assert {(row[0], row[4]) for row in rows if row[1] == "LCDE"} == {
            (part, values["pairwise"]["f_score"]) for part, values in metrics.items()
        }


def test_a_run_that_goes_on_is_the_same_run_of_wandb(tmp_path):
    first = ["logger=wandb", "logger.mode=offline", f"hydra.run.dir={tmp_path}/run"]
    for arguments in ([*TINY, *first], [f"resume={tmp_path}/run"], [f"resume={tmp_path}/run"]):
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "WARN" not in done.stdout + done.stderr
        time.sleep(1)  # what the folders of attempts are named after
    files = list((tmp_path / "run").rglob("run-*.wandb"))
    assert len(files) == 3
    assert len({run.run_id for file in files for run in (entry.run for entry in records(file)) if run.run_id}) == 1


def test_tensorboard_has_scores_figures_and_the_configuration(make_part, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="logger=tensorboard needs tensorboard"
    )
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", ["logger=tensorboard", f"logger.save_dir={tmp_path}", "~callbacks", "~trainer"])
    loggers = [instantiate(config.logger)]
    part = make_part(0)
    baselines = choose_thresholds({"half": ThresholdComponents(0.5), "unknown": ThresholdComponents(None)}, None)
    parts = part, replace(part, labels_true=None, name="b")
    results = [result for each in parts for result in evaluate_baselines(each, baselines)]
    plots.save_figures({"sizes": plots.cluster_sizes(part.labels_true)}, tmp_path / "figures")
    log_config(loggers, config)
    log_results(loggers, results, tmp_path)

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    [last] = events.Scalars("final/test/pairwise_f")
    assert last.value == pytest.approx(results[0].pairwise.f_score)
    assert events.Tags()["images"] == ["figures/sizes"]
    table = events.Tensors("results/text_summary")[0].tensor_proto.string_val[0].decode()
    assert [line.split(" | ")[:2] for line in table.splitlines()[2:]] == [["test", "half"], ["b", "half"]]
    hparams = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"dataset/num_identities/part0_train" in hparams
