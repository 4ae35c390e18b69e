"""Methods on all parts of a data set: what training and evaluation commands share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from pytorch_lightning.loggers import Logger

from lcde.data.datasets import Parts
from lcde.data.gallery import Gallery, require_part_name
from lcde.evaluation.output import print_published, print_table, write_results
from lcde.evaluation.results import Result, evaluate
from lcde.methods.classical import ThresholdRule, with_best_threshold
from lcde.methods.method import Clustering, Details, Method, Rule
from lcde.progress import track
from lcde.report.html import PartReport, report_part, write_report
from lcde.report.loggers import log_results


def evaluate_parts(
    parts: Parts, method: Method, run_dir: Path, report: bool, keep: Callable[[Gallery, Clustering], None] | None = None
) -> tuple[list[Result], dict[str, PartReport]]:
    """Cluster and score held-out identities and evaluation parts in turn, and write the results so far after each.

    All processes of a job call this; those of rank 1 and above get nothing back.

    Parameters
    ----------
    parts, method, run_dir
    report : bool
        Whether to prepare what a report shows.
    keep : callable, optional
        Gets each evaluation part and its clustering.

    Returns
    -------
    results : list of Result
        Without details, which are as large as the kNN graph.
    shown : dict of str to PartReport
        By part, what a report shows of it; empty unless ``report``.
    """
    results: list[Result] = []
    shown: dict[str, PartReport] = {}

    def take(gallery: Gallery) -> None:
        require_part_name(gallery.name)  # files are named after it
        result = evaluate(gallery, method, show_progress=True)
        if result is not None:
            if keep is not None and not gallery.held_out:
                keep(gallery, result.clustering)
            if report:
                shown[gallery.name] = report_part(gallery, result.clustering)
            results.append(replace(result, clustering=replace(result.clustering, details=Details())))
            write_results(results, run_dir)

    for _ in map(take, parts.scored()):  # a loop over the parts would hold one while the next is read
        pass
    return results, shown


def evaluate_baselines(parts: Parts, rules: Mapping[str, Rule]) -> list[Result]:
    """Every rule on every part, beside the method that is evaluated.

    A rule whose ``threshold`` is None takes the best one on held-out identities, and is left out where there are none.
    """
    chosen: dict[str, Rule] = {}
    for name, rule in track(rules.items(), "thresholds of the baselines"):
        if not isinstance(rule, ThresholdRule) or rule.threshold is not None:
            chosen[name] = rule
        elif parts.validation is not None:
            chosen[name] = with_best_threshold(rule, parts.validation, None)
    results = []
    for gallery in parts.scored() if chosen else ():
        for name, rule in track(chosen.items(), "baselines"):
            result = evaluate(gallery, Method(name, rule), baseline=True)
            assert result is not None  # rank 0 alone calls this
            results.append(result)
    return results


def report_results(
    results: Sequence[Result],
    run_dir: Path,
    shown: Mapping[str, PartReport],
    loggers: Sequence[Logger],
    more_figures: Mapping[str, Figure] = {},
) -> None:
    """Write, log and print all results of a run; it gets a report if `evaluate_parts` prepared one in ``shown``."""
    write_results(results, run_dir)
    if shown:
        write_report(run_dir, results, shown, more_figures)
    log_results(loggers, results, run_dir)
    print_table(results)
    print_published(results)
