"""Train LCDE and show its F-scores: ``python train.py [key=value …]``; every choice is in conf/."""

from functools import partial
from pathlib import Path

import hydra
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from lcde import plots, report
from lcde.callbacks import ClusteringEvaluation
from lcde.distributed import own_processes
from lcde.errors import exit_on_input_error
from lcde.evaluation import choose_thresholds, evaluate_baselines, evaluate_lcde
from lcde.loggers import log_config, log_results
from lcde.models.weights import load_checkpoint, load_networks, require_matching, start_from
from lcde.resume import last_checkpoint, resumed


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@exit_on_input_error
def main(config: DictConfig) -> float:
    """Run one training; return the mean pairwise F over the evaluation parts at the best epoch."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if OmegaConf.is_missing(config, "resume"):
        rank_zero_only(report.write_config)(OmegaConf.to_yaml(config, resolve=True), run_dir)
    else:
        run_dir = Path(config.resume)
        config = resumed(run_dir)
    pl.seed_everything(config.seed, verbose=False)

    dataset = instantiate(config.dataset)
    last = last_checkpoint(run_dir)
    given = [None if last else config.get(name) for name in ("checkpoint", "lce_weights", "pce_weights")]
    pair = load_networks(*given, config.model.nhead)
    if pair is not None:
        require_matching(pair, dataset.feature_dim, dataset.k)
    module = instantiate(config.model, feature_dim=dataset.feature_dim, k=dataset.k)
    if pair is not None:
        start_from(pair, module.lcenet, module.pcenet)
    datamodule = instantiate(config.data)(dataset=dataset)
    datamodule.setup("fit")  # before processes start: what is wrong is said once, graphs are built with all cores
    clustering = instantiate(config.clustering)
    evaluation = ClusteringEvaluation(clustering)
    trainer = instantiate(
        config.trainer,
        callbacks=[evaluation, *instantiate(config.callbacks).values()],
        logger=instantiate(config.logger),
    )
    log_config(trainer.loggers, config)
    with own_processes():
        trainer.fit(module, datamodule, ckpt_path=last, weights_only=True)

        best = load_checkpoint(trainer.checkpoint_callback.best_model_path)
        networks = [network.to(trainer.strategy.root_device) for network in (best.lcenet, best.pcenet)]
        parts = datamodule.evaluation_parts
        evaluate = partial(evaluate_lcde, networks=networks, clustering=clustering, show_progress=True)
        results, shown = report.evaluate_parts(parts, evaluate, run_dir, show=True)
        if trainer.is_global_zero:
            baselines = choose_thresholds(instantiate(config.get("baselines", {})), datamodule.train_part)
            results += [result for part in parts for result in evaluate_baselines(part, baselines)]
            training = {"training": plots.training_curves(evaluation.history)}
            report.illustrate(results, shown, run_dir, training)
            report.publish(results, run_dir)
            log_results(trainer.loggers, results, run_dir)
            print(f"results, figures, report.html and checkpoints: {run_dir}")
    return float(trainer.checkpoint_callback.best_model_score)


if __name__ == "__main__":
    main()
