"""What loggers are told beside Lightning's metrics: the configuration at the start, the results at the end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from lcde.evaluation import Result

COLUMNS = (
    *("part", "method", "pairwise precision", "pairwise recall", "pairwise F"),
    *("BCubed precision", "BCubed recall", "BCubed F", "NMI", "clusters", "seconds"),
)


def log_config(loggers: Sequence[Logger], config: DictConfig) -> None:
    """Give every logger the whole resolved configuration."""
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))


@rank_zero_only
def log_results(loggers: Sequence[Logger], results: Sequence[Result], folder: Path) -> None:
    """Give wandb and TensorBoard the table of all methods, the first method's F-scores and ``folder/figures``."""
    rows = [table_row(result) for result in results]
    scores = final_scores(results)
    figures = {file.stem: file for file in sorted((folder / "figures").glob("*.png"))}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(scores)
            logger.log_table("results", list(COLUMNS), rows)
            for name, file in figures.items():
                logger.log_image(f"figures/{name}", [str(file)])
        if isinstance(logger, TensorBoardLogger):
            lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
            logger.experiment.add_text("results", "\n".join(" | ".join(map(str, line)) for line in lines))
            for name, file in figures.items():
                logger.experiment.add_image(f"figures/{name}", np.asarray(Image.open(file)), dataformats="HWC")
            logger.log_hyperparams(logger.hparams, scores)
            logger.finalize("success")


def final_scores(results: Sequence[Result]) -> dict[str, float]:
    """``final/<part>/pairwise_f`` and ``bcubed_f`` of each part's first method, and their means over parts."""
    firsts = {result.part: result for result in reversed(results) if result.pairwise is not None}
    scores = {}
    for name in ("pairwise", "bcubed"):
        of_parts = {f"final/{part}/{name}_f": getattr(result, name).f_score for part, result in firsts.items()}
        if of_parts:
            scores |= {**of_parts, f"final/{name}_f": float(np.mean(list(of_parts.values())))}
    return scores


def table_row(result: Result) -> list[Any]:
    """The cells of `COLUMNS`, scores as fractions, None where identities are unknown."""
    scores = [score.as_dict().values() if score else [None] * 3 for score in (result.pairwise, result.bcubed)]
    cells = *scores[0], *scores[1], result.nmi, result.num_clusters, result.seconds["total"]
    return [result.part, result.method, *cells]


def wandb_logger(save_dir: str, **settings: Any) -> WandbLogger:
    """A run of wandb named after its folder; the runs of a sweep form a group named after the sweep's."""
    hydra = HydraConfig.get()
    folder = Path(save_dir)
    name, group = folder.name, None
    if hydra.mode == RunMode.MULTIRUN:
        sweep = Path(hydra.sweep.dir).absolute()
        name, group = f"{sweep.name}/{folder.relative_to(sweep)}", sweep.name
    logger = WandbLogger(**{"name": name, "group": group, "save_dir": save_dir} | settings)
    vars(logger).get("_wandb_init", {}).pop("anonymous", None)  # wandb warns of it even where it is None
    return logger


class FinishWandb(Callback):
    """Hydra calls it after each job, failed or not: the next job of a sweep would go on writing to the same run."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if wandb.run is not None:
            wandb.finish(exit_code=int(job_return.status != JobStatus.COMPLETED))
            wandb.teardown()  # the process behind it keeps the folders of the first job
