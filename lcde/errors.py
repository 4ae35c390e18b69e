"""The one kind of error a user causes and can mend."""

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode


class InputError(ValueError):
    """A file, value or setting that cannot be used; its text names it and says what to do."""


def exit_on_input_error(entry_point: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``entry_point`` end with exit code 1 and one sentence, not a traceback, on an `InputError`.

    In a sweep, the sentence is logged and the other jobs go on; the sweep ends with exit code 1.
    """

    @functools.wraps(entry_point)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return entry_point(*args, **kwargs)
        except (InputError, InstantiationException) as error:
            # Hydra wraps what a constructor raises; the sentence is the cause's.
            cause = error if isinstance(error, InputError) else error.__cause__
            if not isinstance(cause, InputError):
                raise
            if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                logging.getLogger(__name__).error(cause)
                raise CompactHydraException(f"error: {cause}") from None
            sys.exit(f"error: {cause}")

    return guarded
