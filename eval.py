"""Evaluate trained networks: ``python eval.py checkpoint=… [key=value …]``; every choice is in conf/."""

from pathlib import Path

import hydra
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lcde import plots, report
from lcde.errors import InputError, exit_on_input_error
from lcde.evaluation import evaluate_parts
from lcde.models.weights import NetworkPair, load_checkpoint, load_published, require_matching


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@exit_on_input_error
def main(config: DictConfig) -> None:
    """Cluster and score every part that ``dataset`` names."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    report.write_config(OmegaConf.to_yaml(config, resolve=True), run_dir)
    pl.seed_everything(config.seed, verbose=False)

    pair = load_networks(config)
    dataset = instantiate(config.dataset)
    require_matching(pair, dataset.feature_dim, dataset.k)
    train_part, parts = dataset.load(train=dataset.has_train())

    clustering = instantiate(config.clustering)
    device = instantiate(config.trainer, logger=False).strategy.root_device
    results, clusterings = evaluate_parts(
        parts,
        pair.lcenet.to(device),
        pair.pcenet.to(device),
        clustering,
        instantiate(config.baselines),
        train_part,
    )
    plots.save_figures(report.make_figures(results, clusterings, clustering.edge_threshold), run_dir / "figures")
    report.write_results(results, run_dir)
    report.print_table(results)
    report.print_published(results)
    print(f"results and figures: {run_dir}")


def load_networks(config: DictConfig) -> NetworkPair:
    """The networks of ``checkpoint``, or of the published pair ``lce_weights`` and ``pce_weights``."""
    given = [config.checkpoint is not None, config.lce_weights is not None, config.pce_weights is not None]
    if given == [True, False, False]:
        return load_checkpoint(config.checkpoint)
    if given == [False, True, True]:
        return load_published(config.lce_weights, config.pce_weights, config.model.nhead)
    raise InputError("give either checkpoint=… or both lce_weights=… and pce_weights=….")


if __name__ == "__main__":
    main()
