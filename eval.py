"""Cluster and score every part of a data set: ``python eval.py [key=value …]``, the same as ``lcde eval``."""

from pathlib import Path

import lcde  # noqa: F401  before torch: lcde says how its threads wait for each other

# isort: split
import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from lcde.commands.entry import exit_on_input_error, own_processes, seed_everything
from lcde.commands.scoring import evaluate_baselines, evaluate_parts, report_results
from lcde.configuration import CONF, build, build_each, choose_rule, trained_model
from lcde.data.datasets import Custom, Dataset
from lcde.data.gallery import Gallery
from lcde.errors import InputError
from lcde.evaluation.output import print_table, write_results
from lcde.evaluation.results import score
from lcde.files import require_free, require_writable, write_text
from lcde.methods.method import Clustering, Method, timed
from lcde.methods.saved import SavedClustering, require_assigning
from lcde.models.score_cache import keep_within, require_size
from lcde.models.weights import require_matching
from lcde.report.loggers import log_config
from lcde.resources import limit_threads


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="eval")
@exit_on_input_error
def main(config: DictConfig) -> float:
    """Run one evaluation.

    Returns
    -------
    float
        F-score of held-out identities (mean of pairwise and BCubed), NaN where there are none.
    """
    choice = HydraConfig.get().runtime.choices["clustering"]
    alone = HydraConfig.get().mode == RunMode.RUN  # of a sweep, the best job gets baselines and a report in the end
    report = config.report and alone
    run_dir = Path(config.run_dir)
    limit_threads()
    seed_everything(config.seed)
    if config.save_to is not None:
        require_free(Path(config.save_to))
        require_writable(Path(config.save_to).parent)
    trained = trained_model(config)
    if trained is not None and config.score_cache is not None:
        require_size(config.score_cache_gb)
        require_writable(Path(config.score_cache))
    name = choose_rule(config, choice, trained)
    rank_zero_only(write_text)(run_dir / "config.yaml", OmegaConf.to_yaml(config, resolve=True))

    dataset = build(config.dataset)
    fabric = Fabric(**{key: config.trainer[key] for key in ("accelerator", "devices", "num_nodes", "strategy")})
    model = None if trained is None else trained.model.to(fabric.device)
    rule = build(config.clustering)
    cache = None if config.score_cache is None else Path(config.score_cache)
    method = Method(name, rule, model, cache)
    if config.assign_to is not None:
        assign(config, method, dataset, run_dir)
        return float("nan")
    if trained is not None and rule.needs_scores:
        require_matching(trained, dataset.feature_dim, dataset.k)
    if config.save_to is not None:
        require_assigning(rule)
        evaluated = getattr(dataset, "parts", 1)  # names, or the number of galleries; dataset=custom has one part
        if (evaluated if isinstance(evaluated, int) else len(evaluated)) != 1:
            raise InputError("save_to=… keeps the clustering of one part; let dataset.parts give one.")
    loggers = [build(config.logger)] if config.get("logger") else []
    log_config(loggers, config)  # before any work: a package may be missing, a login may fail
    parts = dataset.load(train=False)

    def keep(gallery: Gallery, clustering: Clustering) -> None:
        if config.save_to is not None:
            SavedClustering.of(gallery, clustering, dataset.k, rule).save(config.save_to)

    with own_processes(fabric.strategy):
        if model is not None:
            fabric.launch()
        results, shown = evaluate_parts(parts, method, run_dir, report, keep)
        if not fabric.is_global_zero:
            return float("nan")
    if cache is not None and cache.is_dir():
        keep_within(cache, config.score_cache_gb)
    if alone:
        results += evaluate_baselines(parts, build_each(config.get("baselines")))
    report_results(results, run_dir, shown, loggers)
    print(f"results: {run_dir}")
    return float(np.mean([result.f_score for result in results if result.held_out and not result.baseline] or np.nan))


def assign(config: DictConfig, method: Method, dataset: Dataset, run_dir: Path) -> None:
    """Give the faces of ``dataset`` the labels of the saved clustering ``assign_to``, or open new clusters."""
    if not isinstance(dataset, Custom):
        raise InputError("assign_to=… takes its new faces from dataset=custom; name them with dataset.features=….")
    saved = SavedClustering.load(config.assign_to)
    features, labels_true = dataset.faces()
    seconds: dict[str, float] = {}
    with timed(seconds, "total"):
        union = saved.assign(features, method.model)
    if config.save_to is not None:
        union.save(config.save_to)
    labels = union.labels[len(saved.labels) :]
    result = score("custom", "assignment", Clustering(labels), seconds, labels_true)
    write_results([result], run_dir)
    if labels_true is not None:
        print_table([result])
    opened = labels[labels > saved.labels.max()]
    joined = len(labels) - len(opened)
    print(f"{joined} new faces joined existing clusters, {len(opened)} opened {len(np.unique(opened))} new clusters.")
    print(f"labels and results: {run_dir}")


if __name__ == "__main__":
    main()
