"""The set-up of a training run, which the command and the estimator share."""

from dataclasses import dataclass
from inspect import signature

from omegaconf import DictConfig
from pytorch_lightning import LightningDataModule, Trainer

from lcde.configuration import build, build_each, plain
from lcde.data.datasets import Dataset
from lcde.errors import InputError
from lcde.methods.classical import ThresholdRule
from lcde.models.base import Model
from lcde.models.weights import Trained, class_named, require_matching, start_from
from lcde.training.callbacks import ClusteringEvaluation, MovedRun
from lcde.training.datamodule import EdgePairDataModule
from lcde.training.nodes import NodeDataModule


@dataclass(frozen=True)
class Training:
    """Everything that a training run needs, ready to fit."""

    model: Model
    datamodule: EdgePairDataModule | NodeDataModule
    trainer: Trainer
    evaluation: ClusteringEvaluation


def set_up(config: DictConfig, rule_name: str, dataset: Dataset, start: Trained | None) -> Training:
    """Build model, data and trainer of ``config``, and read the data.

    Parameters
    ----------
    config : DictConfig
        As conf/train.yaml composes it.
    rule_name : str
        Choice of ``clustering=``.
    dataset : Dataset
        With a training part. Held-out identities choose the checkpoint; without any, only the last epoch counts.
    start : Trained, optional
        A trained model of the same kind to start from, whose layers the model gets.

    Raises
    ------
    InputError
        Where files are missing or do not fit, or the model does not fit D and K, ``start`` or the data module.
    """
    if not config.get("model"):
        raise InputError("model=none has nothing to train; name a model, or cluster with eval.py.")
    if start is not None:
        require_matching(start, dataset.feature_dim, dataset.k)
        found, wanted = type(start.model), class_named(config.model._target_, Model, "model=…")
        if found is not wanted:
            raise InputError(f"{start.source} holds a {found.__name__}, but model=… is a {wanted.__name__}.")
    layers = {} if start is None else start.model.layer_settings()
    if "feature_dim" in config.model:  # other models fit any
        layers = {"feature_dim": dataset.feature_dim, "k": dataset.k, **layers}
    model = build(config.model, **layers)
    takes = class_named(config.data._target_, LightningDataModule, "data=…").model_class
    if not isinstance(model, takes):
        batches = f"data=… makes batches for a {takes.__name__}, not for a {type(model).__name__}"
        raise InputError(f"{batches}; experiment=… chooses both.")
    if start is not None:
        start_from(start, model)
    evaluation = ClusteringEvaluation(rule_name, build(config.clustering), plain(config.clustering))
    # Before processes start: errors are reported once, graphs are built with all cores.
    make_data = build(config.data)
    try:
        signature(make_data)
    except ValueError:
        raise InputError(f"data={{{', '.join(config.data)}}} has a key that {config.data._target_} lacks.") from None
    datamodule = make_data(dataset=dataset)
    if isinstance(evaluation.rule, ThresholdRule) and datamodule.parts.validation is None:
        evaluation.rule.require_threshold()
    logger = build(config.logger) if config.get("logger") else False
    callbacks = build_each(config.callbacks).values()
    trainer = build(config.trainer, callbacks=[evaluation, MovedRun(), *callbacks], logger=logger)
    return Training(model, datamodule, trainer, evaluation)
