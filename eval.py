"""Cluster and score: ``python eval.py [checkpoint=…] [key=value …]``; every choice is in conf/."""

from pathlib import Path

import hydra
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lcde import report
from lcde.errors import InputError, exit_on_input_error
from lcde.evaluation import evaluate_baselines, evaluate_lcde, evaluate_unsupervised
from lcde.loggers import log_config, log_results
from lcde.models.weights import NetworkPair, load_checkpoint, load_published, require_matching


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@exit_on_input_error
def main(config: DictConfig) -> None:
    """Cluster every part that ``dataset`` names, with trained networks or without, and score it if it has labels."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    report.write_config(OmegaConf.to_yaml(config, resolve=True), run_dir)
    pl.seed_everything(config.seed, verbose=False)

    pair = load_networks(config)
    dataset = instantiate(config.dataset)
    if pair is not None:
        require_matching(pair, dataset.feature_dim, dataset.k)
    train_part, parts = dataset.load(train=dataset.has_train())

    clustering = instantiate(config.clustering)
    if pair is None:
        unsupervised = instantiate(config.unsupervised)
        evaluated = [evaluate_unsupervised(part, unsupervised) for part in parts]
    else:
        device = instantiate(config.trainer, logger=False).strategy.root_device
        networks = pair.lcenet.to(device), pair.pcenet.to(device)
        evaluated = [evaluate_lcde(part, *networks, clustering, show_progress=True) for part in parts]
    results = [result for result, _ in evaluated]
    results += evaluate_baselines(parts, instantiate(config.baselines), train_part)
    clusterings = [(part, clustered) for part, (_, clustered) in zip(parts, evaluated, strict=True)]

    report.publish(results, clusterings, clustering.edge_threshold, run_dir, {})
    if config.get("logger") is not None:
        loggers = [instantiate(config.logger)]
        log_config(loggers, config)
        log_results(loggers, results, run_dir)
    if pair is None:
        print("No trained networks were given; networks trained on labelled faces (train.py) find more.")
    print(f"results, figures and report.html: {run_dir}")


def load_networks(config: DictConfig) -> NetworkPair | None:
    """The networks of ``checkpoint``, or of the published pair ``lce_weights``, ``pce_weights``; None for neither."""
    given = [config.checkpoint is not None, config.lce_weights is not None, config.pce_weights is not None]
    if given == [True, False, False]:
        return load_checkpoint(config.checkpoint)
    if given == [False, True, True]:
        return load_published(config.lce_weights, config.pce_weights, config.model.nhead)
    if any(given):
        raise InputError("give either checkpoint=… or both lce_weights=… and pce_weights=….")
    return None


if __name__ == "__main__":
    main()
