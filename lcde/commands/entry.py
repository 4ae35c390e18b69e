"""What the commands that Hydra starts share: messages in place of tracebacks, and processes of Lightning's."""

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from torch import distributed

from lcde.errors import InputError
from lcde.files import require_writable
from lcde.resources import limit_threads


def exit_on_input_error(entry_point: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``entry_point`` end with exit code 1 and one sentence instead of a traceback on an `InputError`.

    In a sweep, the sentence is logged and the other jobs continue; the sweep ends with exit code 1.
    """

    @functools.wraps(entry_point)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return entry_point(*args, **kwargs)
        except InputError as error:
            if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                logging.getLogger(__name__).error(error)
                raise CompactHydraException(f"error: {error}") from None
            sys.exit(f"error: {error}")

    return guarded


class RequireWritable(Callback):
    """Hydra callback that ends a command whose folder cannot be written to, which Hydra would make with a traceback."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of a run."""
        self._make(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of a sweep."""
        self._make(config, "hydra.sweep.dir")

    def _make(self, config: DictConfig, key: str) -> None:
        try:
            require_writable(Path(OmegaConf.select(config, key)))
        except InputError as error:
            sys.exit(f"error: {key}: {error}")


def seed_everything(seed: object) -> None:
    """Seed all random generators; raises `InputError` on another seed than they take."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise InputError(f"seed={seed} must be a whole number from 0 to {2**32 - 1}.")
    pl.seed_everything(seed, verbose=False)


@contextmanager
def own_processes(strategy: Any) -> Iterator[None]:
    """Let Lightning's ``strategy`` start the other processes of this job; nothing of them stays for a sweep's next job.

    Lightning's launcher runs ``sys.argv`` again, followed by ``hydra.run.dir``: options must precede overrides. In a
    sweep, the overrides must be those of this job, with its folder.
    """
    hydra, argv, environment = HydraConfig.get(), sys.argv, dict(os.environ)
    limit_threads(getattr(strategy, "num_processes", 1))
    sweep = hydra.mode == RunMode.MULTIRUN
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    of_hydra = ["hydra.mode=RUN"] if sweep else hydra.overrides.hydra
    sys.argv = [argv[0], *(f"--config-dir={folder}" for folder in folders), *hydra.overrides.task, *of_hydra]
    if sweep:
        with read_write(hydra):  # type: ignore[arg-type]  # a DictConfig of that type
            hydra.run.dir = hydra.runtime.output_dir
    try:
        yield
    finally:
        sys.argv = argv
        if sweep:
            if distributed.is_initialized():
                distributed.destroy_process_group()
            os.environ.clear()
            os.environ.update(environment)
