"""Clustering of a kNN graph: arrays and `KNNGraph` in, labels out."""

from collections.abc import Iterator

ROWS = 4_096  # rows handled at a time: float64 intermediates of so many stay in the cache


def row_blocks(end: int, start: int = 0) -> Iterator[slice]:
    """Slices of at most `ROWS` rows that together cover the rows from ``start`` to ``end``."""
    return (slice(first, min(first + ROWS, end)) for first in range(start, end, ROWS))
