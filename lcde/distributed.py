"""One job on several processes: what its ranks tell each other, and how Lightning starts them inside a Hydra sweep."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import read_write
from torch import distributed


def rank() -> int:
    """This process's number among those of the job, 0 where there is one process."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes the job has."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def broadcast(value: Any) -> Any:
    """Rank 0's ``value``, on every rank; all must call this."""
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: Any) -> list[Any]:
    """On rank 0 the ``value`` of every rank, in order, elsewhere nothing; all must call this."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    distributed.gather_object(value, values, dst=0)
    return values or []


@contextmanager
def own_processes() -> Iterator[None]:
    """Let Lightning start the other processes of this Hydra job, and leave nothing of them to the next job of a sweep.

    Lightning's launcher runs ``sys.argv`` again, with ``hydra.run.dir`` added. In a sweep that would be the whole
    sweep: there it must be the overrides of this job, and its folder.
    """
    hydra, argv, environment = HydraConfig.get(), sys.argv, dict(os.environ)
    if hydra.mode == RunMode.MULTIRUN:
        sys.argv = [argv[0], *hydra.overrides.task, "hydra.mode=RUN"]
        with read_write(hydra):
            hydra.run.dir = hydra.runtime.output_dir
    try:
        yield
    finally:
        sys.argv = argv
        if hydra.mode == RunMode.MULTIRUN:
            if distributed.is_initialized():
                distributed.destroy_process_group()
            os.environ.clear()
            os.environ.update(environment)
