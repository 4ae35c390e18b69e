"""Progress bars for those who watch; a log file would get an empty line from each."""

from collections.abc import Iterable
from typing import TypeVar

import rich
import rich.progress

Item = TypeVar("Item")


def is_watched() -> bool:
    """Whether what is printed goes to a terminal or a notebook."""
    console = rich.get_console()
    return console.is_terminal or console.is_jupyter


def track(items: Iterable[Item], description: str, shown: bool = True) -> Iterable[Item]:
    """``items`` with a bar that vanishes in the end, if it is to be ``shown`` and somebody watches."""
    return rich.progress.track(items, description, transient=True, disable=not (shown and is_watched()))
