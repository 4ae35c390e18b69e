"""Progress bars in terminals and notebooks; a log file would get an empty line from each."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import rich
import rich.progress

Item = TypeVar("Item")


def is_watched() -> bool:
    """Whether output goes to a terminal or a notebook."""
    console = rich.get_console()
    return console.is_terminal or console.is_jupyter


def track(items: Iterable[Item], description: str, shown: bool = True) -> Iterable[Item]:
    """``items`` with a progress bar that disappears at the end, if ``shown`` and somebody can see it."""
    return rich.progress.track(items, description, transient=True) if shown and is_watched() else items


@contextmanager
def counter(description: str, total: int, done: int = 0, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar as of `track` that starts at ``done`` of ``total``; yields a function that advances it."""
    if not (shown and is_watched()):
        yield lambda number: None
        return
    with rich.progress.Progress(transient=True) as progress:
        task = progress.add_task(description, total=total, completed=done)
        yield lambda number: progress.advance(task, number)
