"""Configurations: where they are, and how objects are built from them."""

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lcde.errors import InputError
from lcde.methods.method import Rule
from lcde.methods.second_pass import SecondPass
from lcde.models.weights import PUBLISHED_NHEAD, Trained, class_named, load_trained

# Inside the package in a wheel, beside it in the source tree.
CONF = next(folder / "conf" for folder in Path(__file__).parents if (folder / "conf").is_dir())

# clustering=auto holds nothing but what the user overrides; `choose_rule` merges it into the rule that it stands for.
ConfigStore.instance().store(group="clustering", name="auto", node=OmegaConf.create({}, flags={"struct": False}))


def compose_config(command: str, overrides: Sequence[str], config_dir: str | Path | None = None) -> DictConfig:
    """The configuration of ``command`` ("train" or "eval") as the command line composes it.

    Parameters
    ----------
    overrides : sequence of str
        As on the command line.
    config_dir : path, optional
        Folder of a user's own YAML files, as of ``--config-dir``.
    """
    if config_dir is None:
        return copy.deepcopy(_compose_own(command, tuple(overrides)))
    return _compose(command, [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]", *overrides])


def build(config: Any, **arguments: Any) -> Any:
    """`hydra.utils.instantiate` to plain lists and dicts.

    Raises
    ------
    InputError
        As a constructor raised it, and where a constructor refuses its arguments or there is none of this name.
    """
    try:
        return instantiate(config, _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        reason, _, key = str(error).partition("\nfull_key: ")
        reason = " ".join(reason.partition(", set env var")[0].split()).rstrip(".")
        raise InputError(f"{key or 'a setting'} cannot be used: {reason}.") from error


def trained_model(config: DictConfig) -> Trained | None:
    """The trained model of ``checkpoint``, or of ``lce_weights`` and ``pce_weights``; None where none are named."""
    nhead = OmegaConf.select(config, "model.nhead", default=PUBLISHED_NHEAD)
    return load_trained(config.checkpoint, config.lce_weights, config.pce_weights, nhead)


def choose_rule(config: DictConfig, choice: str, trained: Trained | None) -> str:
    """Make ``config.clustering`` the rule that ``clustering=choice`` stands for.

    Parameters
    ----------
    config : DictConfig
        Of the whole run.
    choice : str
        "auto" takes the rule of ``trained``, ``lcde`` where its file names none, ``unsupervised`` without networks.
    trained : Trained, optional

    Returns
    -------
    str
        The name of the rule, a choice of ``clustering=``.

    Raises
    ------
    InputError
        Where ``clustering`` overrides a key that the rule lacks, or a checkpoint names something that is no rule.
    """
    if choice == "auto":
        if trained is not None and trained.rule_config is not None:
            choice, rule = str(trained.rule_name), _safe_rule(trained)
        else:
            choice = "unsupervised" if trained is None else "lcde"
            rule = plain(OmegaConf.load(CONF / "clustering" / f"{choice}.yaml"), resolve=False)
        try:
            config.clustering = OmegaConf.merge(OmegaConf.create(rule, flags={"struct": True}), config.clustering)
        except OmegaConfBaseException as error:
            raise InputError(f"clustering={choice} has no {error.full_key}; it has {', '.join(rule)}.") from None
    return choice


def build_rule(trained: Trained) -> Rule:
    """The rule in the checkpoint of ``trained``; raises `InputError` where it names something that is no rule."""
    return build(_safe_rule(trained))


def build_each(config: DictConfig | None) -> dict[str, Any]:
    """What each entry of ``config`` builds, by name."""
    return {str(name): build(entry) for name, entry in (config or {}).items()}


def plain(config: Any, resolve: bool = True) -> dict[str, Any]:
    """``config`` as plain values, interpolations resolved or as text."""
    container = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _compose(command: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(command, [*overrides])


# Composing takes longer than clustering an album. A user's own folder may change between two calls, ``conf`` does not.
_compose_own = functools.lru_cache(_compose)


def _safe_rule(trained: Trained) -> dict[str, Any]:
    """The configuration of the rule of ``trained``, which builds nothing but a rule and its second pass.

    It may be a stranger's: Hydra would call whatever a ``_target_`` names, at any depth, and resolve interpolations.
    """
    config, source = trained.rule_config, trained.source

    def check(value: Any, base: type) -> None:
        if isinstance(value, Mapping):
            if "_target_" in value:
                class_named(value["_target_"], base, source)
            for entry in value.values():
                check(entry, SecondPass)
        elif isinstance(value, list | tuple):
            for entry in value:
                check(entry, SecondPass)
        elif isinstance(value, str) and "${" in value:
            raise InputError(f"{source} holds the interpolation {value} in its rule; name one with clustering=….")

    assert config is not None
    check(config, Rule)
    return config
