"""One job on several processes: what its ranks send each other."""

from typing import Any

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
