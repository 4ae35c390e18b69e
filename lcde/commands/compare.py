"""The jobs of ``lcde compare``: one method with one seed each, in a process of its own.

Such a process runs ``python -m lcde.commands.compare FOLDER`` and writes ``results.json`` into its folder at the end.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint

from lcde.commands.entry import seed_everything
from lcde.configuration import CONF, build, compose_config, trained_model
from lcde.data.datasets import Parts
from lcde.data.gallery import Gallery
from lcde.errors import InputError
from lcde.evaluation.output import metrics_of, table_row
from lcde.evaluation.results import evaluate
from lcde.files import readable, remove_unfinished, write_text
from lcde.methods.classical import ThresholdRule, with_best_threshold
from lcde.methods.method import Method, Rule
from lcde.models.base import Model
from lcde.models.weights import load_checkpoint, require_matching
from lcde.progress import track
from lcde.resources import limit_threads
from lcde.training.callbacks import TrainingTime
from lcde.training.fit import set_up
from lcde.training.resume import last_checkpoint

ERROR = "error: "  # how the last line of a log begins where the job failed
OWN = ("methods", "seeds", "checkpoints", "settings")  # keys of conf/compare.yaml that the jobs do not get
CHOSEN = {
    "model": "methods=[…]",
    "clustering": "methods=[…]",
    "seed": "seeds=[…]",
    "checkpoint": "checkpoints.<method>=…",
}


@dataclass(frozen=True)
class Job:
    """One method with one seed.

    Attributes
    ----------
    method : str
    seed : int
    folder : Path
        Of its files.
    overrides : list of str
        Of conf/train.yaml.
    config_dir : str, optional
        Folder of a user's own YAML files.
    """

    method: str
    seed: int
    folder: Path
    overrides: list[str]
    config_dir: str | None

    @property
    def results(self) -> Path:
        """The file that it writes at its end."""
        return self.folder / "results.json"

    def rows(self) -> list[dict[str, Any]]:
        """What `run` gave, with method and seed; where it has not ended, the reason under "error"."""
        of_job = {"method": self.method, "seed": self.seed}
        if self.results.is_file():
            with readable(self.results, "results of a job", "; delete it to run the job again"):
                return [of_job | row for row in json.loads(self.results.read_text(encoding="utf-8"))]
        line = self.last_line()
        return [of_job | {"error": line.removeprefix(ERROR) if line.startswith(ERROR) else "no results yet"}]

    def last_line(self) -> str:
        """The end of what the job printed; "" where it has not printed anything."""
        log = self.folder / "log.txt"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
        return lines[-1] if lines else ""


def jobs_of(config: DictConfig, hydra: HydraConf, folder: Path) -> list[Job]:
    """The jobs of a command.

    Parameters
    ----------
    config : DictConfig
        As conf/compare.yaml composes it.
    hydra : HydraConf
        Of the command: its overrides and the folders of YAML files.
    folder : Path
        Of the command; each job gets ``<folder>/<method>/<seed>``.

    Raises
    ------
    InputError
        For unknown methods, settings that ``methods`` and ``seeds`` stand for, and a folder of another comparison.
    """
    own = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    common = []
    for text, override in zip(
        hydra.overrides.task, OverridesParser.create().parse_overrides(hydra.overrides.task), strict=True
    ):
        key = override.get_key_element().lstrip("+~")
        if key in CHOSEN:
            raise InputError(f"lcde compare sets {key} itself; use {CHOSEN[key]} in place of {text}.")
        if key.split(".")[0] not in OWN:
            common.append(text)
    given = OmegaConf.to_container(config, resolve=False)
    assert isinstance(given, dict)
    methods, jobs = list(given["methods"]), []
    for seed in given["seeds"]:
        if not isinstance(seed, int):
            raise InputError(f"seeds=[{seed}] must be whole numbers: they name folders, too.")
    for name in (*given["checkpoints"], *given["settings"]):
        if name not in methods:
            raise InputError(f"{name} has settings or a checkpoint, but methods={methods} does not name it.")
    for method in methods:
        overrides = [*_choice(method, [CONF, *map(Path, own)]), *common, *given["settings"].get(method, [])]
        if method in given["checkpoints"]:
            overrides.append(f"checkpoint='{given['checkpoints'][method]}'")
        try:
            # As this command's: errors come before any work.
            compose("train", [*overrides, f"run_dir='{folder.absolute()}'"])
        except HydraException as error:
            reason = f"{method} cannot be set up: {str(error).splitlines()[0].rstrip('.')}"
            raise InputError(f"{reason}; what one method alone gets stands in settings.{method}=[…].") from None
        for seed in given["seeds"]:
            of_job = folder / method / str(seed)
            of_seed = [f"seed={seed}", f"run_dir='{of_job.absolute()}'"]
            jobs.append(Job(method, seed, of_job, [*overrides, *of_seed], own[0] if own else None))
    for job in jobs:
        text = json.dumps({"overrides": job.overrides, "config_dir": job.config_dir})
        path = job.folder / "job.json"
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise InputError(f"{job.folder} holds a job of other settings; name another folder with hydra.run.dir=….")
        write_text(path, text)
    return jobs


def run_jobs(jobs: Sequence[Job]) -> Iterator[Job]:
    """Run those ``jobs`` that have no results yet, one after the other, and yield each when it has ended."""
    for job in track([job for job in jobs if not job.results.is_file()], "methods and seeds"):
        print(f"{job.method}, seed {job.seed}", flush=True)
        remove_unfinished(job.folder)
        with open(job.folder / "log.txt", "wb") as log:  # written as the job goes on, to be watched
            command = [sys.executable, "-X", "utf8", "-m", "lcde.commands.compare", str(job.folder)]
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
            line = job.last_line()
            if not job.results.is_file() and not line.startswith(ERROR):
                end = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit code {code}"
                after = f' after "{line}"' if line else ""
                log.write(f"\n{ERROR}ended {end}{after}; see {job.folder / 'log.txt'}\n".encode())
        yield job


def run(folder: Path) -> list[dict[str, Any]]:
    """Train, unless a checkpoint is given, and score the job of ``folder``.

    Returns
    -------
    list of dict
        One row for each part and way to choose the threshold ("threshold_by"): "settings" for that of the YAML file,
        "held-out" identities, or the part itself, "oracle". Scores are fractions.
    """
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    config = compose_config("train", job["overrides"], job["config_dir"])
    limit_threads()
    seed_everything(config.seed)
    name, dataset, rule = folder.parent.name, build(config.dataset), build(config.clustering)
    model: Model | None = None
    parts: Parts | None = None
    clock = TrainingTime()
    trained = trained_model(config)
    if trained is not None:
        require_matching(trained, dataset.feature_dim, dataset.k)
        model = trained.model
    elif config.model:
        training = set_up(config, name, dataset, None)
        training.trainer.callbacks.append(clock)  # type: ignore[attr-defined]  # Lightning's list
        if isinstance(rule, ThresholdRule) and training.datamodule.parts.validation is not None:
            # Each epoch gets its own threshold: that of other data does not tell how good it is.
            training.evaluation.rule = replace(rule, threshold=None)
        training.trainer.fit(training.model, training.datamodule, ckpt_path=last_checkpoint(folder))
        chosen = training.trainer.checkpoint_callback
        assert isinstance(chosen, ModelCheckpoint)
        model, parts = load_checkpoint(chosen.best_model_path).model, training.datamodule.parts
        model = model.to(training.trainer.strategy.root_device)
    parts = parts or dataset.load(train=False)
    method = Method(name, rule, model)
    rules, rows = rules_of(rule, parts, model), []
    for gallery in parts.scored():
        of_part = dict(rules)
        if isinstance(rule, ThresholdRule) and gallery.labels_true is not None and not gallery.held_out:
            of_part["oracle"] = with_best_threshold(rule, gallery, model)
        rows += [row_of(gallery, by, replace(method, rule=chosen)) for by, chosen in of_part.items()]
    return [row | {"training_seconds": clock.seconds} for row in rows]


def rules_of(rule: Rule, parts: Parts, model: Model | None) -> dict[str, Rule]:
    """``rule`` as it is set, unless it lacks a threshold, and with the one that is best on held-out identities."""
    if not isinstance(rule, ThresholdRule):
        return {"settings": rule}
    rules: dict[str, Rule] = {} if rule.threshold is None else {"settings": rule}
    if parts.validation is not None:
        rules["held-out"] = with_best_threshold(rule, parts.validation, model)
    else:
        rule.require_threshold()
    return rules


def row_of(gallery: Gallery, threshold_by: str, method: Method) -> dict[str, Any]:
    """The row of one clustering, see `run`."""
    result = evaluate(gallery, method, show_progress=True)
    assert result is not None  # this is rank 0
    values = metrics_of(result)
    threshold = method.rule.threshold if isinstance(method.rule, ThresholdRule) else None
    row = {"part": gallery.name, "held_out": gallery.held_out, "threshold_by": threshold_by, "threshold": threshold}
    row |= {"faces": len(gallery), **table_row(values), "peak_memory_mb": result.peak_memory_mb}
    if torch.cuda.is_available():
        row["gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return row


def _choice(method: str, folders: Sequence[Path]) -> list[str]:
    """The overrides that choose ``method``."""
    names = {
        group: {file.stem for folder in folders for file in folder.glob(f"{group}/*.yaml")}
        for group in ("model", "clustering")
    }
    if method in names["model"] - {"none"}:
        return [f"model={method}"]
    if method in names["clustering"]:
        return ["model=none", f"clustering={method}"]
    known = ", ".join(sorted((names["model"] | names["clustering"]) - {"none"}))
    raise InputError(f"methods=[…] names {method}, which is no choice of model= or clustering=; there are {known}.")


def main() -> None:
    """Run the job of the folder that the command line names."""
    folder = Path(sys.argv[1])
    try:
        text = json.dumps(run(folder), indent=1, default=_plain)
    except InputError as error:
        sys.exit(f"{ERROR}{error}")
    write_text(folder / "results.json", text)


def _plain(value: Any) -> Any:
    assert isinstance(value, np.generic)
    return value.item()


if __name__ == "__main__":
    main()
