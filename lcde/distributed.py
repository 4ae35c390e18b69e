"""One job on several processes: what its ranks send each other."""

import functools
from datetime import timedelta
from typing import Any

from torch import distributed

PATIENCE = timedelta(days=30)  # that ranks wait for rank 0, which alone turns edges into labels


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
    distributed.broadcast_object_list(values, src=0, group=_patient(distributed.group.WORLD))
    return values[0]


def gather(value: Any) -> list[Any]:
    """On rank 0 the ``value`` of every rank, in order, elsewhere nothing; all must call this."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    distributed.gather_object(value, values, dst=0, group=_patient(distributed.group.WORLD))
    return values or []


@functools.cache
def _patient(world: distributed.ProcessGroup) -> distributed.ProcessGroup:
    """All ranks of ``world`` as a group that waits: minutes of work on rank 0 end the others of Lightning's group."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)
