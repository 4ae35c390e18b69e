"""Training beside another busy process, for each way in which OpenMP's threads can wait for each other.

PyTorch splits each operation between the threads of an OpenMP runtime, which wait for the slowest at its end. A thread
that waits in a loop (``OMP_WAIT_POLICY=active``) keeps a core from the thread that it waits for where another process
needs the cores too; one that sleeps (``passive``) must be woken.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial

from benchmarks import ROOT
from benchmarks.measure import Case, Options, Run
from benchmarks.training import EdgePairDataModule, prepare_training, read_data
from lcde.configuration import compose_config

SECONDS = 4  # of training; a number of steps would take minutes where waiting threads keep the cores
MOST_STEPS = 10_000
OVERRIDES: list[str] = []  # the default synthetic benchmark
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
POLICIES: dict[str, dict[str, str]] = {
    "as lcde sets it": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "GNU's default": {"GOMP_SPINCOUNT": "300000"},  # what libgomp takes where no variable is set: some ms
    "active": {"OMP_WAIT_POLICY": "active"},
}
# Matrix products on all cores until the process that started it ends.
BUSY = """
import os, sys
import numpy as np
matrix = np.ones((1_000, 1_000), dtype=np.float32)
print("started", flush=True)
while os.getppid() == int(sys.argv[1]):
    matrix @ matrix
"""


def cases(options: Options) -> list[Case]:
    """One case: each policy, alone and beside a busy process."""
    contenders = {
        f"{policy}, {'beside a busy process' if busy else 'alone'}": partial(_prepare, variables, busy)
        for busy in (False, True)
        for policy, variables in POLICIES.items()
    }
    num_faces = len(read_data(EdgePairDataModule, OVERRIDES).train_gallery)
    return [Case("busy", "a training step", num_faces, contenders)]


def _prepare(variables: Mapping[str, str], busy: bool) -> Callable[[], Run]:
    environment = _environment() | variables
    command = [sys.executable, "-m", "benchmarks.busy", json.dumps(OVERRIDES), str(SECONDS)]

    def job() -> Run:
        # The runtime reads the variables when it is loaded: another process.
        training = subprocess.Popen(
            command, env=environment, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with training:
            training.stdout.readline()  # it has read its data
            with busy_process() if busy else nullcontext():
                printed, _ = training.communicate("go\n")
        if training.returncode:
            raise SystemExit("the training process failed")
        return Run(**json.loads(printed.splitlines()[-1]))

    return job


@contextmanager
def busy_process() -> Iterator[subprocess.Popen]:
    """A process that keeps all cores busy, which is ended in any case."""
    command = [sys.executable, "-c", BUSY, str(os.getpid())]
    with subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def _environment() -> dict[str, str]:
    """This process's environment without what says how many threads there are and how they wait."""
    return {key: value for key, value in os.environ.items() if key not in VARIABLES}


def train_for(overrides: list[str], seconds: int) -> Run:
    """Train for ``seconds``, or 3 steps if they take longer; the result is of one step."""
    limited = [*overrides, f"+trainer.max_time=00:00:00:{seconds:02}", "+trainer.min_steps=3"]
    job = prepare_training(EdgePairDataModule, limited, MOST_STEPS)
    print("ready", flush=True)
    sys.stdin.readline()
    run = job()
    steps_per_second = run.figures["pairs per second"] / compose_config("train", overrides).data.batch_size
    return Run(1 / steps_per_second, run.peak_memory_mb, {"steps per second": steps_per_second})


if __name__ == "__main__":
    print(json.dumps(asdict(train_for(json.loads(sys.argv[1]), int(sys.argv[2])))))
