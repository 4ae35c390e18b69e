"""What this process may use of the machine: cores and memory, by the limits of its containers, job and user."""

import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from lcde.errors import InputError

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
FILE_CACHE = "file", "total_cache"  # of memory.stat in cgroup v2 and v1: counted as used, given back when needed
THREADS = "OMP_NUM_THREADS"
THREADS_GIVEN = THREADS in os.environ
PEAK = 2.5  # of features and graph: what clustering=lcde with its second pass, which needs most, takes in all


def limit_threads(processes: int = 1) -> None:
    """Share the CPU quota of the container between ``processes``, unless the user has set ``OMP_NUM_THREADS``.

    Libraries start a thread for each core that they may run on, which a quota does not change: the threads would wait
    for each other. Without a quota their own choice stays.
    """
    cores, quota = usable_cores(), cpu_quota()
    if THREADS_GIVEN or quota is None or quota >= cores:
        return
    import torch
    from threadpoolctl import threadpool_limits

    threads = max(1, math.ceil(quota) // processes)
    os.environ[THREADS] = str(threads)  # for libraries that are not loaded yet, and for other processes of the job
    threadpool_limits(threads)
    torch.set_num_threads(threads)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota() -> float | None:
    """How many cores' time the cgroups of this process grant it; None where they do not limit it."""
    quotas = []
    for folder in _cgroups("cpu"):
        v1 = f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
        quota, _, period = (_text(folder / "cpu.max") or v1).partition(" ")
        if quota.isdigit():  # not "max", -1 or missing
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def require_memory(source: str, shape: tuple[int, ...], k: int, mapped: bool = False) -> None:
    """Raise `InputError` where features of ``shape`` (N, D) and kNN graph (N, K) alone exceed the memory there is.

    Where clustering may need more than there is, a warning says so. Features that are ``mapped`` stay in their file.
    """
    (num_faces, feature_dim), available = shape, available_memory()
    graph, features = num_faces * 8 * k, num_faces * 4 * feature_dim
    needed, peak = graph + features * (not mapped), PEAK * (graph + features) - features * mapped
    if available is None or peak <= available:
        return
    what = f"{source}, {num_faces:,} faces of D={feature_dim} with K={k},"
    there = f"but this process may take {available / 1e9:.3g} GB"
    if needed > available:
        remedy = "use a machine or job of more memory, or a smaller dataset.k"
        parts = "its kNN graph" if mapped else "features and kNN graph"
        raise InputError(f"{what} needs {needed / 1e9:.3g} GB for {parts} alone, {there}; {remedy}.")
    warnings.warn(f"{what} may need up to {peak / 1e9:.3g} GB to be clustered, {there}.", stacklevel=2)


def available_memory() -> int | None:
    """Bytes that this process can still take: of the machine, its cgroups and its own limits; None if unknown."""
    room = [int(line.split()[1]) * 1024 for line in _lines(PROC / "meminfo") if line.startswith("MemAvailable")]
    for folder in _cgroups("memory"):
        v1 = f"{_text(folder / 'memory.limit_in_bytes')} {_text(folder / 'memory.usage_in_bytes')}"
        v2 = f"{_text(folder / 'memory.max')} {_text(folder / 'memory.current')}"
        for limit, _, used in (v1.partition(" "), v2.partition(" ")):
            if limit.isdigit() and used:
                cached = [line.split()[1] for line in _lines(folder / "memory.stat") if line.split()[0] in FILE_CACHE]
                room.append(int(limit) - int(used) + max(map(int, cached), default=0))
    room += _room_of_limits()
    return max(0, min(room)) if room else None


def _room_of_limits() -> list[int]:
    """Bytes left of the limits that ``ulimit -v`` (address space) and ``ulimit -d`` (without mapped files) set."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return []
    used = [int(pages) * resource.getpagesize() for pages in _text(PROC / "self" / "statm").split()]
    limits = ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)) if used else ()
    soft = ((resource.getrlimit(limit)[0], column) for limit, column in limits)
    return [limit - used[column] for limit, column in soft if limit != resource.RLIM_INFINITY]


def _cgroups(controller: str) -> Iterator[Path]:
    """Folders of this process's cgroups, up to the outermost; in a container, the kernel's path may not be mounted."""
    for line in _lines(PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):  # cgroup v2, or v1
            root = CGROUPS / (controllers if (CGROUPS / controllers).is_dir() else controller)
            folder = root / path.lstrip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(root))


def _text(path: Path) -> str:
    return "\n".join(_lines(path))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
