"""Checks of the settings of data sets and rules, before any long work."""

import math
import os
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from lcde.errors import InputError


@dataclass(frozen=True)
class Within:
    """Range of a number, for annotations such as ``Annotated[float, Within(0, 1)]``."""

    low: float
    high: float = math.inf


def check_settings(settings: object, prefix: str) -> None:
    """Raise `InputError` unless the settings of a dataclass are what its annotations say.

    ``Annotated[float, Within(…)]`` is a number in a range, with ``int`` a whole one, with ``| None`` an optional one;
    ``bool`` and ``Literal`` are choices, ``str`` may be a path. Other annotations are not checked. Messages name
    ``<prefix><key>``.
    """
    for key, hint in get_type_hints(type(settings), include_extras=True).items():
        value, choices = getattr(settings, key), (True, False) if hint is bool else get_args(hint)
        if get_origin(hint) is Annotated:
            fits, wanted = _number(value, *choices)
        elif hint is bool or get_origin(hint) is Literal:
            fits, wanted = value in choices, " or ".join(map(str, choices))
        elif hint in (str, str | None):
            optional = hint is not str
            fits, wanted = isinstance(value, str | os.PathLike), f"text{' or null' if optional else ''}"
            fits = fits or (optional and value is None)
        else:
            continue
        if not fits:
            raise InputError(f"{prefix}{key}={value} must be {wanted}.")


def _number(value: Any, kind: Any, span: Within) -> tuple[bool, str]:
    """Whether ``value`` is a number of type ``kind`` within ``span``, and in words what it must be."""
    whole, optional = int in (kind, *get_args(kind)), NoneType in get_args(kind)
    fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    limits = f"from {span.low} to {span.high}" if span.high < math.inf else f"of at least {span.low}"
    wanted = f"a {'whole ' if whole else ''}number {limits}{' or null' if optional else ''}"
    return (fits and bool(span.low <= value <= span.high)) or (optional and value is None), wanted
