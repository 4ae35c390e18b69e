"""One job on several processes: what its ranks send each other."""

import functools
from datetime import timedelta
from typing import Any

from torch import distributed

TIMEOUT = timedelta(days=30)  # of ranks that wait for rank 0, which alone turns edges into labels


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
    distributed.broadcast_object_list(values, src=0, group=_waiting(distributed.group.WORLD))
    return values[0]


def gather(value: Any) -> list[Any]:
    """On rank 0 the ``value`` of every rank, in order, elsewhere nothing; all must call this."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    distributed.gather_object(value, values, dst=0, group=_waiting(distributed.group.WORLD))
    return values or []


@functools.lru_cache(maxsize=1)  # a sweep has a new ``world`` for each job, and must not keep the old ones
def _waiting(world: distributed.ProcessGroup) -> distributed.ProcessGroup:
    """A group of all ranks of ``world`` that waits for `TIMEOUT`; Lightning's own gives up after some minutes."""
    return distributed.new_group(backend="gloo", timeout=TIMEOUT)
