"""Train a method, then cluster and score every part: ``python train.py [key=value …]``, the same as ``lcde train``."""

from pathlib import Path

import lcde  # noqa: F401  before torch: lcde says how its threads wait for each other

# isort: split
import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only

from lcde.commands.entry import exit_on_input_error, own_processes, seed_everything
from lcde.commands.scoring import evaluate_baselines, evaluate_parts, report_results
from lcde.configuration import CONF, build, build_each, build_rule, trained_model
from lcde.files import remove_unfinished, write_text
from lcde.methods.method import Method
from lcde.models.weights import load_checkpoint
from lcde.report.loggers import log_config
from lcde.report.plots import training_curves
from lcde.resources import limit_threads
from lcde.training.fit import set_up
from lcde.training.resume import last_checkpoint, require_same_run, resumed


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
@exit_on_input_error
def main(config: DictConfig) -> float:
    """Run one training.

    Returns
    -------
    float
        F-score of the held-out identities (mean of pairwise and BCubed) at the chosen checkpoint: what a search
        maximises.
    """
    name, run_dir = HydraConfig.get().runtime.choices["clustering"], Path(config.run_dir)
    if OmegaConf.is_missing(config, "resume"):
        text = OmegaConf.to_yaml(config, resolve=True)
        require_same_run(run_dir, text)
        rank_zero_only(write_text)(run_dir / "config.yaml", text)
    else:
        run_dir = Path(config.resume)
        config, name = resumed(run_dir)
    rank_zero_only(remove_unfinished)(run_dir)
    limit_threads()
    seed_everything(config.seed)

    last = last_checkpoint(run_dir)
    start = None if last else trained_model(config)
    training = set_up(config, name, build(config.dataset), start)
    trainer, parts = training.trainer, training.datamodule.parts
    chosen = trainer.checkpoint_callback
    assert isinstance(chosen, ModelCheckpoint)
    log_config(trainer.loggers, config)
    with own_processes(trainer.strategy):
        trainer.fit(training.model, training.datamodule, ckpt_path=last)
        best = load_checkpoint(chosen.best_model_path)
        score = float("nan" if chosen.best_model_score is None else chosen.best_model_score)
        rule = build_rule(best)  # with the threshold that was chosen, if one was
        method = Method(name, rule, best.model.to(trainer.strategy.root_device))
        results, shown = evaluate_parts(parts, method, run_dir, config.report)
        if trainer.is_global_zero:
            curves = {"training": training_curves(training.evaluation.history, score)} if config.report else {}
            results += evaluate_baselines(parts, build_each(config.get("baselines")))
            report_results(results, run_dir, shown, trainer.loggers, curves)
            print(f"results, figures, report.html and checkpoints: {run_dir}")
    return score


if __name__ == "__main__":
    main()
