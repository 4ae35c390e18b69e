"""What happens around training: clustering and F-scores at each validation epoch, connectivity, seeds, progress."""

import time
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar

from lcde.clustering.pipeline import LCDEClustering
from lcde.data.datamodule import Neighbourhoods
from lcde.distributed import broadcast, rank
from lcde.evaluation import evaluate_lcde
from lcde.models.scoring import GraphScorer
from lcde.progress import is_watched


class ClusteringEvaluation(Callback):
    """Cluster every evaluation part with the present networks and log its F-scores, and their means over parts.

    Logs ``val/<part>/pairwise_f``, ``val/<part>/bcubed_f``, ``val/pairwise_f`` and ``val/bcubed_f`` as fractions.
    ``history`` keeps all logged metrics of each epoch; it goes into the checkpoint.
    """

    def __init__(self, clustering: LCDEClustering) -> None:
        self.clustering = clustering
        self.history: list[dict[str, float]] = []
        self._scores: dict[str, float] = {}  # of this epoch; the logged ones are rounded to float32

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        scores = {}
        for part in trainer.datamodule.evaluation_parts:
            networks = pl_module.lcenet, pl_module.pcenet
            evaluated = evaluate_lcde(part, networks, self.clustering, show_progress=False)
            if evaluated is not None:
                scores[f"val/{part.name}/pairwise_f"] = evaluated[0].pairwise.f_score
                scores[f"val/{part.name}/bcubed_f"] = evaluated[0].bcubed.f_score
        self._scores = broadcast(scores)
        pl_module.log_dict(self._scores, sync_dist=True)  # the same on all ranks, as Lightning wants to be told
        for name in ("pairwise_f", "bcubed_f"):
            mean = float(np.mean([score for key, score in self._scores.items() if key.endswith(name)]))
            pl_module.log(f"val/{name}", mean, prog_bar=True, sync_dist=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not at the end of validation, which comes before the epoch's training losses are averaged.
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.history.append({"epoch": trainer.current_epoch, **metrics, **self._scores})

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]


class PairRefresh(Callback):
    """After each training epoch, hand the pair sampler the connectivity that LCENet now gives for the training part."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is not None:  # it was written after an epoch, with the weights that are now loaded
            self._refresh(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._refresh(trainer, pl_module)

    def _refresh(self, trainer: Trainer, pl_module: LightningModule) -> None:
        part = trainer.datamodule.train_part
        scorer = GraphScorer(pl_module.lcenet, pl_module.pcenet, part.features, part.indices)
        if rank() > 0:
            scorer.serve()
        else:
            trainer.datamodule.set_train_connectivity(scorer.connectivity())
            scorer.dismiss()
        pl_module.train()


class StepSeed(Callback):
    """Seed dropout by the number of the step and the process, so that a resumed run draws what the first one would."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        draws = np.random.SeedSequence([self.seed, trainer.global_rank, trainer.global_step, batch_idx])
        torch.manual_seed(int(draws.generate_state(1, np.uint64)[0]))


class Throughput(Callback):
    """Log ``train/pairs_per_second`` of each epoch: pairs of all processes, validation not counted."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self._pairs, self._start = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Neighbourhoods, batch_idx: int
    ) -> None:
        self._pairs += len(batch.features)
        if trainer.is_last_batch:
            rate = self._pairs / (time.perf_counter() - self._start)
            pl_module.log("train/pairs_per_second", rate, on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True)


def progress_bar() -> ProgressBar:
    """A bar where somebody watches, a line an epoch in the log of a batch job."""
    return RichProgressBar() if is_watched() else EpochLines()


class EpochLines(ProgressBar):
    """Print after each epoch which it was, its mean F-scores and its pace."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:  # Lightning calls it on all processes but one
        self._enabled = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        logged = trainer.callback_metrics
        shown = {
            "pairwise F": (100, "val/pairwise_f"),
            "BCubed F": (100, "val/bcubed_f"),
            "pairs a second": (1, "train/pairs_per_second"),
        }
        values = [f"{name} {times * logged[key]:.2f}" for name, (times, key) in shown.items() if key in logged]
        print(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {', '.join(values)}", flush=True)
