"""What happens around training: F-scores at each validation epoch, connectivity, seeds, progress, time."""

import time
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from torch import Tensor

from lcde.data.gallery import Gallery
from lcde.distributed import broadcast, rank
from lcde.evaluation.results import evaluate
from lcde.methods.classical import ThresholdRule, with_best_threshold
from lcde.methods.method import Method, Rule
from lcde.models.base import Model, PairModel
from lcde.progress import is_watched
from lcde.training.resume import moved


class ClusteringEvaluation(Callback):
    """Cluster the held-out identities and every evaluation part with the present model, and log the F-scores.

    Logs, as fractions, ``val/pairwise_f``, ``val/bcubed_f`` and their mean ``val/f_score`` of the held-out identities,
    which choose the checkpoint, and ``test/<part>/pairwise_f`` and ``test/<part>/bcubed_f`` of the evaluation parts,
    which choose nothing. Each checkpoint gets the name and the configuration of the rule.

    Parameters
    ----------
    name : str
        Choice of ``clustering=`` that made the rule.
    rule : Rule
        A `ThresholdRule` without a threshold gets, in each epoch, the one that is best on held-out identities.
    rule_config : dict
        The configuration that made it, as plain values; the threshold chosen last goes into the checkpoints.

    Attributes
    ----------
    history : list of dict
        All logged metrics of each epoch but learning rates; it is kept in the checkpoint.
    """

    def __init__(self, name: str, rule: Rule, rule_config: dict[str, Any]) -> None:
        self.name, self.rule, self.rule_config = name, rule, rule_config
        self.history: list[dict[str, float]] = []
        self._scores: dict[str, float] = {}  # of this epoch; the logged ones are rounded to float32

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cluster and score all parts, on all processes."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, Model)
        scores: dict[str, float] = {}
        parts = trainer.datamodule.parts  # type: ignore[attr-defined]  # Lightning attaches it
        rule = self._with_threshold(parts.validation, pl_module)
        for gallery in parts.scored():
            result = evaluate(gallery, Method(self.name, rule, pl_module))
            if result is not None and result.pairwise is not None and result.bcubed is not None:
                prefix = "val" if result.held_out else f"test/{result.part}"
                scores |= {f"{prefix}/pairwise_f": result.pairwise.f_score, f"{prefix}/bcubed_f": result.bcubed.f_score}
                scores |= {"val/f_score": result.f_score} if result.held_out else {}
        self._scores = broadcast(scores)
        # The same on all ranks; Lightning warns without sync_dist.
        pl_module.log_dict(self._scores, sync_dist=True)

    def _with_threshold(self, held_out: Gallery | None, model: Model) -> Rule:
        """The rule, with the threshold that is best on ``held_out`` identities if it has none."""
        if not isinstance(self.rule, ThresholdRule) or self.rule.threshold is not None or held_out is None:
            return self.rule
        rule = with_best_threshold(self.rule, held_out, model)
        self.rule_config = {**self.rule_config, "threshold": rule.threshold}
        return rule

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch: not at the end of validation, which comes before its training losses are averaged."""
        # Learning rates are logged at some steps alone, of which a resumed run may have had none.
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if not name.startswith("lr-")}
        self.history.append({"epoch": trainer.current_epoch, **metrics, **self._scores})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Name the method: the model names itself (`Model.on_save_checkpoint`), this adds the rule."""
        checkpoint.setdefault("method", {}).update(name=self.name, clustering=self.rule_config)

    def state_dict(self) -> dict[str, Any]:
        """The history."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the history."""
        self.history = state_dict["history"]


class HeldOutCheckpoint(ModelCheckpoint):
    """Keep the latest epoch whose score on held-out identities is close to the best one.

    Small differences between epochs are chance: one wrong merge of two large clusters costs more. Of epochs that are
    as good, the latest has the lowest learning rate.

    Parameters
    ----------
    tolerance : float
        How far below the best score an epoch may be.
    **settings
        Of Lightning's ``ModelCheckpoint``; ``monitor`` names the score.
    """

    def __init__(self, tolerance: float, **settings: Any) -> None:
        super().__init__(mode="max", **settings)
        self.tolerance, self.highest = tolerance, -np.inf

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether the epoch of score ``current`` is to be kept, in place of the one that is."""
        if current is None:
            return False
        self.highest = max(self.highest, float(current))
        return bool(current >= self.highest - self.tolerance)

    def state_dict(self) -> dict[str, Any]:
        """As Lightning's, with the best score."""
        return {**super().state_dict(), "highest": self.highest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        super().load_state_dict(state_dict)
        self.highest = state_dict["highest"]


class MovedRun(Callback):
    """Let a run whose folder was moved find its checkpoints in the new place."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Replace the old paths: `ModelCheckpoint` would keep that of the best epoch, and drop its score."""
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None:
                checkpoint["callbacks"][callback.state_key] = moved(state, state["dirpath"], str(callback.dirpath))


class PairRefresh(Callback):
    """After each training epoch, give the pair sampler the model's present connectivity of the training part."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In a resumed run, score the part with the weights that were loaded: they were saved after an epoch."""
        if trainer.ckpt_path is not None:
            self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the training part, on all processes."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]  # Lightning attaches it
        if not isinstance(pl_module, PairModel) or not datamodule.sampler.reads_connectivity:
            return
        scores = pl_module.bind(datamodule.train_gallery, "float32", False, None)
        if rank() > 0:
            scores.serve()
        else:
            datamodule.set_train_connectivity(scores.connectivity())
            scores.dismiss()
        pl_module.train()


class StepSeed(Callback):
    """Seed dropout by the number of the step and the process, so that a resumed run draws what the first one would."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed torch's global generator."""
        draws = np.random.SeedSequence([self.seed, trainer.global_rank, trainer.global_step, batch_idx])
        torch.manual_seed(int(draws.generate_state(1, np.uint64)[0]))


class Throughput(Callback):
    """Log ``train/pairs_per_second`` of each epoch: pairs of all processes, validation not counted."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock at the first batch."""
        if batch_idx == 0:
            self._pairs, self._start = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log after the last batch."""
        self._pairs += len(batch[0])
        if trainer.is_last_batch:
            rate = self._pairs / (time.perf_counter() - self._start)
            pl_module.log("train/pairs_per_second", rate, on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True)


class TrainingTime(Callback):
    """Measure the time of a training; the checkpoint keeps it, so that a resumed training adds to it.

    Attributes
    ----------
    seconds : float
        When the training has ended. What an interrupted attempt did after its last checkpoint does not count.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a checkpoint has been loaded before."""
        self._start = time.perf_counter() - self.seconds

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self._start

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far."""
        return {"seconds": time.perf_counter() - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.seconds = state_dict["seconds"]


def progress_bar() -> Callback:
    """A bar in a terminal or notebook, a line per epoch in the log of a batch job."""
    return RichProgressBar() if is_watched() else EpochLines()


class EpochLines(Callback):
    """Print after each epoch its number, the F-scores of the held-out identities and the pairs per second."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line."""
        logged, values = trainer.callback_metrics, []
        if "val/f_score" in logged:
            pairwise, bcubed = (100 * logged[f"val/{name}_f"] for name in ("pairwise", "bcubed"))
            values.append(f"held-out pairwise F {pairwise:.2f}, BCubed F {bcubed:.2f}")
        if "train/pairs_per_second" in logged:
            values.append(f"pairs per second {logged['train/pairs_per_second']:.2f}")
        if trainer.is_global_zero:
            print(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {', '.join(values)}", flush=True)
