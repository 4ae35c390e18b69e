"""An hour of training, half of it killed and resumed at random: ``python -m benchmarks soak``.

A short training tells how many epochs fit into the time. An undisturbed run takes less than half of it. The same run in
another folder is killed (SIGKILL) while it starts, trains, evaluates, writes checkpoints and, once, while it writes its
results, and must end with the same weights, history, scores, labels and files. Memory is read from /proc: Linux only.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback
from rich.console import Console

from benchmarks import ROOT
from benchmarks.ablation import ResultTable
from benchmarks.measure import machine
from lcde.files import write_text

SETTINGS = [  # networks as by default, whose checkpoints take 64 MB, and epochs of seconds
    "dataset.num_identities={part0_train:200,part1_test:75,part2_test:225}",
    "dataset.held_out_identities=50",
    "trainer=cpu",
]
START, TRAINING, EVALUATION, CHECKPOINTS, RESULTS = "start-up", "training", "evaluation", "checkpoints", "results"
MARK = "stage: "
PROBE = 5  # epochs of the short training
FEWEST = 20  # epochs, in however little time
BETWEEN_KILLS = 4  # epochs, on average, that a process that has started gains
WARM_UP = 0.25  # of the epochs of the undisturbed run: caches and the allocator's pools fill
MOST_GROWTH = 0.02  # of the memory, over the others: a float32 for each edge of all parts, kept each epoch, takes more
POLL = 0.02  # seconds
VARYING = ("seconds", "peak_memory_mb", "train/pairs_per_second")  # of what runs write


class Stages(Callback):
    """Prints when each stage of a training begins."""

    def on_train_epoch_start(self, *_: Any) -> None:
        """Steps follow."""
        _print_stage(TRAINING)

    def on_validation_start(self, *_: Any) -> None:
        """Clustering of all parts follows, then scores of the training part."""
        _print_stage(EVALUATION)

    def on_train_epoch_end(self, *_: Any) -> None:
        """Lightning calls those that write checkpoints last."""
        _print_stage(CHECKPOINTS)

    def on_fit_end(self, *_: Any) -> None:
        """Final scores, figures and report follow."""
        _print_stage(RESULTS)


def _print_stage(name: str) -> None:
    print(MARK + name, flush=True)


@dataclass(frozen=True)
class Stage:
    """The beginning of a stage: seconds since the process was started, and the memory then."""

    name: str
    second: float
    memory_mb: float


@dataclass(frozen=True)
class Kill:
    """A moment of a process: ``seconds`` after it began ``stage`` for the time after the first ``times``.

    A stage that happens to be shorter has ended then: the kill falls into the next one.
    """

    stage: str
    times: int
    seconds: float

    def is_due(self, stages: Sequence[Stage], now: float) -> bool:
        """Whether a process with these ``stages`` has come to it, ``now`` seconds after its start."""
        begun = [stage.second for stage in stages if stage.name == self.stage]
        return len(begun) > self.times and now >= begun[self.times] + self.seconds


@dataclass
class Process:
    """What was seen of one process and its children: stages, memory (MB) each second, and the load of the machine."""

    stages: list[Stage] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    seconds: float = 0.0
    exit_code: int = 0

    @property
    def epochs(self) -> list[Stage]:
        """The beginnings of its epochs."""
        return [stage for stage in self.stages if stage.name == TRAINING]

    def lengths(self) -> dict[str, float]:
        """Median of seconds that each stage took."""
        ends, lengths = [*(stage.second for stage in self.stages[1:]), self.seconds], {}
        for stage, end in zip(self.stages, ends, strict=True):
            lengths.setdefault(stage.name, []).append(end - stage.second)
        return {name: statistics.median(values) for name, values in lengths.items()}


def main(arguments: Sequence[str]) -> None:
    """Run both trainings, print the table, write the figures; end with an error where they differ or memory grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="of both trainings together (%(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of the kills (%(default)s)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    if not Path("/proc/self/stat").exists():
        raise SystemExit("the soak test reads memory from /proc, which this system lacks; run it on Linux.")

    folder, described = Path(tempfile.mkdtemp(prefix="soak-")), machine()
    whole, killed = folder / "undisturbed", folder / "killed"
    log = folder / "log.txt"
    probe = require_success(watched(command(folder / "probe", PROBE), log), log)
    epochs = epochs_within(60 * options.minutes, probe)
    undisturbed = require_success(watched(command(whole, epochs), log), log)
    rng = np.random.default_rng(options.seed)
    disturbed = list(until_it_ends(killed, epochs, undisturbed.lengths(), rng, log))
    require_success(disturbed[-1], log)

    growth = Growth.of(undisturbed)
    failures = [*differences(whole, killed), *growth.failures()]
    table(epochs, undisturbed, disturbed, growth).print()
    path = options.results / f"soak-{str(described['date'])[:19].replace(':', '-')}.json"
    kept = {
        "machine": described,
        "settings": {"minutes": options.minutes, "seed": options.seed, "epochs": epochs, "overrides": SETTINGS},
        "growth": asdict(growth),
        "failures": failures,
        "undisturbed": asdict(undisturbed),
        "killed": [asdict(process) for process in disturbed],
    }
    text = json.dumps(kept) + "\n"
    write_text(path, text)
    Console().print(f"results: {path}")
    if failures:
        raise SystemExit(f"error: {'; '.join(failures)}. Both runs are kept in {folder}.")
    Console().print(f"the same weights, history, scores, labels and files; memory grew by {growth.share:.2%}")
    shutil.rmtree(folder)


def command(folder: Path, epochs: int) -> list[str]:
    """The training of ``epochs`` into ``folder``."""
    stages = f"+callbacks.stages._target_={__name__}.{Stages.__name__}"
    return [*SETTINGS, f"trainer.max_epochs={epochs}", stages, f"hydra.run.dir={folder}"]


def require_success(process: Process, log: Path) -> Process:
    """Return ``process``; end with an error where it failed."""
    if process.exit_code:
        raise SystemExit(f"error: a training failed with exit code {process.exit_code}; the end of {log} says why.")
    return process


def epochs_within(seconds: float, probe: Process) -> int:
    """How many epochs both runs can have, with time for kills; ``probe`` tells how long start and epochs take."""
    epoch = statistics.median(np.diff([stage.second for stage in probe.epochs]))
    start = probe.epochs[0].second
    return max(FEWEST, int((seconds - probe.seconds) / (2 * epoch + (start + epoch) / BETWEEN_KILLS)))


def until_it_ends(
    folder: Path, epochs: int, lengths: Mapping[str, float], rng: np.random.Generator, log: Path
) -> Iterator[Process]:
    """Start the training into ``folder`` and kill it, until it has ended; ``lengths`` are the usual ones of stages."""
    at_the_end = [Kill(RESULTS, 0, rng.random() * lengths[RESULTS])]
    while True:
        stage = str(rng.choice([START, TRAINING, EVALUATION, CHECKPOINTS]))
        times = 0 if stage == START else int(rng.integers(2 * BETWEEN_KILLS + 1))
        kills = [Kill(stage, times, rng.random() * lengths[stage]), *at_the_end]
        # Without settings there is nothing to resume; without a checkpoint, `resume` starts from the beginning.
        resume = (folder / "config.yaml").exists()
        process = watched([f"resume={folder}"] if resume else command(folder, epochs), log, kills)
        yield process
        if process.exit_code != -signal.SIGKILL:
            return
        if process.stages[-1].name == RESULTS:
            at_the_end.clear()


def watched(arguments: Sequence[str], log: Path, kills: Sequence[Kill] = ()) -> Process:
    """Run train.py to its end, or to the first of ``kills``; what it prints is added to ``log``."""
    seen, start, command = Process(), time.monotonic(), [sys.executable, "train.py", *arguments]
    with open(log, "a") as output, open(log) as lines:
        lines.seek(0, os.SEEK_END)
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
        seen.stages.append(Stage(START, 0.0, resident_mb(process.pid)))
        try:
            ended = False
            while not ended:
                ended, now = process.poll() is not None, time.monotonic() - start
                for line in lines:
                    if line.startswith(MARK):
                        seen.stages.append(Stage(line.removeprefix(MARK).strip(), now, resident_mb(process.pid)))
                if not ended and now >= len(seen.memory_mb):
                    seen.memory_mb.append(resident_mb(process.pid))
                    seen.load.append(os.getloadavg()[0])
                if not ended and any(kill.is_due(seen.stages, now) for kill in kills):
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                time.sleep(POLL)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    seen.seconds, seen.exit_code = now, process.wait()
    return seen


def resident_mb(group: int) -> float:
    """Resident memory of all processes of a process group."""
    pages = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            values = (process / "stat").read_text().rpartition(")")[2].split()  # from the third on, see proc(5)
            if int(values[2]) == group:
                pages += int(values[21])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


@dataclass(frozen=True)
class Growth:
    """The line of least squares through the memory at the beginning of each epoch after the `WARM_UP`."""

    mb_per_epoch: float
    share: float  # of the mean memory, over all these epochs

    @classmethod
    def of(cls, process: Process) -> "Growth":
        """Of a process that trained long enough."""
        memory = [stage.memory_mb for stage in process.epochs[round(WARM_UP * len(process.epochs)) :]]
        slope = float(np.polyfit(np.arange(len(memory)), memory, 1)[0])
        return cls(slope, slope * (len(memory) - 1) / statistics.mean(memory))

    def failures(self) -> Iterator[str]:
        """One sentence where it is too much."""
        if self.share > MOST_GROWTH:
            yield f"memory grew by {self.mb_per_epoch:.3f} MB an epoch, {self.share:.1%} in all, over {MOST_GROWTH:.0%}"


def differences(whole: Path, killed: Path) -> Iterator[str]:
    """A sentence for each way in which the runs in both folders differ; times are expected to."""
    folders = whole, killed
    extra, missing = (sorted(a - b) for a, b in ((files(killed), files(whole)), (files(whole), files(killed))))
    if extra or missing:
        yield f"the killed run left {', '.join(extra) or 'no other file'} and lacks {', '.join(missing) or 'none'}"
        if missing:
            return
    scores = [without_times(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))) for folder in folders]
    if scores[0] != scores[1]:
        yield "the scores in metrics.json differ"
    for file in sorted(whole.glob("labels/*.npy")):
        if file.read_bytes() != (killed / "labels" / file.name).read_bytes():
            yield f"the labels of {file.stem} differ"
    for name in ("best", "last"):
        states = [torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for folder in folders]
        for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
            if not identical(states[0][key], states[1][key]):
                yield f"{key} of {name}.ckpt differs"
        histories = [without_times(state["callbacks"]["ClusteringEvaluation"]["history"]) for state in states]
        if histories[0] != histories[1]:
            yield f"the history in {name}.ckpt differs"


def files(folder: Path) -> set[str]:
    """Paths of all files in the folder of a run; those of a resumed attempt, <date and time>/…, as the first one's."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"^\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d/", "", path) for path in paths}


def without_times(value: Any) -> Any:
    """``value`` without what differs between any two runs."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in VARYING}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def identical(first: Any, second: Any) -> bool:
    """Whether both hold the same values, tensors the same bits."""
    if isinstance(first, torch.Tensor):
        bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (first, second)]
        return first.shape == second.shape and first.dtype == second.dtype and torch.equal(*bits)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(identical(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(identical, first, second))
    return first == second


def table(epochs: int, undisturbed: Process, disturbed: Sequence[Process], growth: Growth) -> ResultTable:
    """What both runs took."""
    kills = Counter(process.stages[-1].name for process in disturbed[:-1])
    killed = ", ".join(f"{name} {count}" for name, count in sorted(kills.items()))
    rows = []
    for processes, grown in (([undisturbed], f"{growth.mb_per_epoch:+.3f}"), (disturbed, "")):
        minutes, peak = sum(each.seconds for each in processes) / 60, max(max(each.memory_mb) for each in processes)
        load = statistics.mean(value for each in processes for value in each.load)
        begun = sum(len(each.epochs) for each in processes)
        numbers = f"{begun}", f"{minutes:.1f}", f"{load:.1f}", f"{peak:,.0f}", grown
        rows.append([killed if processes is disturbed else "never", f"{len(processes)}", *numbers])
    columns = ["killed in", "processes", "epochs begun", "minutes", "load", "peak MB", "MB per epoch"]
    return ResultTable(f"{epochs} epochs, undisturbed and killed", columns, rows)
