"""What loggers are given beside Lightning's metrics: the configuration at the start, the results at the end.

wandb is imported only where a run of it is configured.
"""

import sys
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from lcde.evaluation.output import COLUMNS, metrics_of, table_row
from lcde.evaluation.results import Result


def log_config(loggers: Sequence[Logger], config: DictConfig) -> None:
    """Give every logger the whole resolved configuration."""
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


@rank_zero_only
def log_results(loggers: Sequence[Logger], results: Sequence[Result], folder: Path) -> None:
    """Give wandb and TensorBoard the table of all results, `final_scores` and the images in ``folder/figures``.

    The table has the columns part, method, held_out, baseline, and those of ``sweep.csv``.
    """
    of_result = "part", "method", "held_out", "baseline"
    columns = [*of_result, *COLUMNS]
    rows = [[*attrgetter(*of_result)(result), *table_row(metrics_of(result)).values()] for result in results]
    scores = final_scores(results)
    figures = {f"figures/{file.stem}": file for file in sorted((folder / "figures").glob("*.png"))}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(scores)
            logger.log_table("results", columns, rows)
            for name, file in figures.items():
                logger.log_image(name, [str(file)])
        if isinstance(logger, TensorBoardLogger):
            lines = [columns, ["---"] * len(columns), *rows]
            logger.experiment.add_text("results", "\n".join(" | ".join(map(str, line)) for line in lines))
            for name, file in figures.items():
                logger.experiment.add_image(name, np.asarray(Image.open(file)), dataformats="HWC")
            logger.log_hyperparams(logger.hparams, scores)
            logger.finalize("success")


def final_scores(results: Sequence[Result]) -> dict[str, float]:
    """F-scores of the evaluated methods, baselines left out.

    Returns
    -------
    dict of str to float
        ``final/<part>/pairwise_f`` and ``final/<part>/bcubed_f`` of evaluation parts, and their means
        ``final/pairwise_f`` and ``final/bcubed_f``; ``final/held_out/pairwise_f`` and ``final/held_out/bcubed_f``,
        means over held-out parts.
    """
    scores: dict[str, list[float]] = {}
    for result in results:
        if not result.baseline and result.pairwise is not None and result.bcubed is not None:
            for place in ("final/held_out",) if result.held_out else (f"final/{result.part}", "final"):
                scores.setdefault(f"{place}/pairwise_f", []).append(result.pairwise.f_score)
                scores.setdefault(f"{place}/bcubed_f", []).append(result.bcubed.f_score)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def wandb_logger(save_dir: str, **settings: Any) -> WandbLogger:
    """A run of wandb named after its folder; the runs of a sweep form a group named after the sweep's folder."""
    hydra = HydraConfig.get()
    folder = Path(save_dir)
    name, group = folder.name, None
    if hydra.mode == RunMode.MULTIRUN:
        sweep = Path(hydra.sweep.dir).absolute()
        name, group = f"{sweep.name}/{folder.relative_to(sweep)}", sweep.name
    logger = WandbLogger(**{"name": name, "group": group, "save_dir": save_dir} | settings)
    vars(logger).get("_wandb_init", {}).pop("anonymous", None)  # wandb warns of this key even if it is None
    return logger


class FinishWandb(Callback):
    """Hydra callback that ends the run of wandb after each job, so that the next job of a sweep starts its own."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """End the run, if there is one, as failed or finished."""
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=int(job_return.status != JobStatus.COMPLETED))
            wandb.teardown()  # wandb's own process keeps the folders of the first job
