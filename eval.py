"""Cluster and score: ``python eval.py [checkpoint=…] [key=value …]``; every choice is in conf/."""

from functools import partial
from itertools import chain
from pathlib import Path

import hydra
import numpy as np
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from lcde import report
from lcde.clustering.pipeline import Clustering
from lcde.data.datasets import Custom, Dataset
from lcde.data.formats import require_free
from lcde.data.knn import require_k
from lcde.data.part import Part
from lcde.distributed import own_processes
from lcde.errors import InputError, exit_on_input_error
from lcde.evaluation import (
    Result,
    choose_thresholds,
    evaluate_assignment,
    evaluate_baselines,
    evaluate_lcde,
    evaluate_unsupervised,
)
from lcde.loggers import log_config, log_results
from lcde.models.scoring import GraphScorer
from lcde.models.weights import NetworkPair, load_networks, require_matching
from lcde.saved_clustering import SavedClustering


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@exit_on_input_error
def main(config: DictConfig) -> None:
    """Cluster every part that ``dataset`` names, with trained networks or without, and score it if it has labels."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    rank_zero_only(report.write_config)(OmegaConf.to_yaml(config, resolve=True), run_dir)
    pl.seed_everything(config.seed, verbose=False)
    if config.save_to is not None:
        require_free(Path(config.save_to))
        if len(config.dataset.get("parts", ["custom"])) != 1:
            raise InputError("save_to=… keeps the clustering of one part; let dataset.parts name one.")

    pair = load_networks(config.checkpoint, config.lce_weights, config.pce_weights, config.model.nhead)
    dataset = instantiate(config.dataset)
    processes = {key: config.trainer[key] for key in ("accelerator", "devices", "num_nodes", "strategy")}
    fabric = Fabric(**processes)
    if config.assign_to is not None:
        assign(config, pair, dataset, fabric.device, run_dir)
        return
    if pair is not None:
        require_matching(pair, dataset.feature_dim, dataset.k)
    baselines = instantiate(config.get("baselines", {}))
    train_part, parts = dataset.load(train=bool(baselines) and dataset.has_train())  # to choose their thresholds on

    clustering, unsupervised = instantiate(config.clustering), instantiate(config.unsupervised)
    with own_processes():
        if pair is not None:
            fabric.launch()
            networks = pair.lcenet.to(fabric.device), pair.pcenet.to(fabric.device)
            cache = None if config.score_cache is None else Path(config.score_cache)

        def evaluate(part: Part) -> tuple[Result, Clustering] | None:
            if pair is None:
                evaluated = evaluate_unsupervised(part, unsupervised)
            else:
                require_k(dataset.k, len(part), part.name)
                evaluated = evaluate_lcde(part, networks, clustering, True, cache)
            if evaluated is not None and config.save_to is not None:
                SavedClustering.of(part, evaluated[1], dataset.k, pair is not None).save(config.save_to)
            return evaluated

        results, shown = report.evaluate_parts(parts, evaluate, run_dir, config.report)
        if not fabric.is_global_zero:
            return
    baselines = choose_thresholds(baselines, train_part)
    if baselines:
        results += chain.from_iterable(map(partial(evaluate_baselines, baselines=baselines), parts))
    if config.report:
        report.illustrate(results, shown, run_dir, {})
    report.publish(results, run_dir)
    if config.get("logger") is not None:
        loggers = [instantiate(config.logger)]
        log_config(loggers, config)
        log_results(loggers, results, run_dir)
    if pair is None:
        print("No trained networks were given; some trained on labelled faces (train.py) can find more.")
    print(f"results: {run_dir}")


def assign(config: DictConfig, pair: NetworkPair | None, dataset: Dataset, device: torch.device, run_dir: Path) -> None:
    """Give the faces of ``dataset`` the labels of the saved clustering ``assign_to``, or open new clusters."""
    if not isinstance(dataset, Custom):
        raise InputError("assign_to=… takes its new faces from dataset=custom; name them with dataset.features=….")
    saved, bind = SavedClustering.load(config.assign_to), None
    if pair is not None and saved.trained:
        require_matching(pair, saved.features.shape[1], saved.indices.shape[1], f"the clustering {config.assign_to}")
    if pair is not None:
        bind = partial(GraphScorer, pair.lcenet.to(device), pair.pcenet.to(device))
    result, union = evaluate_assignment(saved, *dataset.faces(), bind)
    if config.save_to is not None:
        union.save(config.save_to)
    report.write_results([result], run_dir)
    if result.pairwise is not None:
        report.print_table([result])
    opened = result.labels[result.labels > saved.labels.max()]
    joined = len(result.labels) - len(opened)
    print(f"{joined} new faces joined clusters there are, {len(opened)} opened {len(np.unique(opened))} new clusters.")
    print(f"labels and results: {run_dir}")


if __name__ == "__main__":
    main()
