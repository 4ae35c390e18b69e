"""Train LCDE and show its F-scores: ``python train.py [key=value …]``; every choice is in conf/."""

from pathlib import Path

import hydra
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lcde import plots, report
from lcde.callbacks import ClusteringEvaluation
from lcde.errors import exit_on_input_error
from lcde.evaluation import evaluate_parts
from lcde.models.weights import load_checkpoint


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@exit_on_input_error
def main(config: DictConfig) -> float:
    """Run one training; return the mean pairwise F over the evaluation parts at the best epoch."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    report.write_config(OmegaConf.to_yaml(config, resolve=True), run_dir)
    pl.seed_everything(config.seed, verbose=False)

    module = instantiate(config.model)
    datamodule = instantiate(config.data)
    clustering = instantiate(config.clustering)
    evaluation = ClusteringEvaluation(clustering)
    trainer = instantiate(
        config.trainer,
        callbacks=[evaluation, *instantiate(config.callbacks).values()],
        logger=instantiate(config.logger),
    )
    trainer.fit(module, datamodule)

    best = load_checkpoint(trainer.checkpoint_callback.best_model_path)
    if trainer.is_global_zero:
        results, clusterings = evaluate_parts(
            datamodule.evaluation_parts,
            best.lcenet.to(trainer.strategy.root_device),
            best.pcenet.to(trainer.strategy.root_device),
            clustering,
            instantiate(config.baselines),
            datamodule.train_part,
        )
        figures = report.make_figures(results, clusterings, clustering.edge_threshold)
        figures["training"] = plots.training_curves(evaluation.history)
        plots.save_figures(figures, run_dir / "figures")
        report.write_results(results, run_dir)
        report.print_table(results)
        report.print_published(results)
        print(f"results, figures and checkpoints: {run_dir}")
    return float(trainer.checkpoint_callback.best_model_score)


if __name__ == "__main__":
    main()
