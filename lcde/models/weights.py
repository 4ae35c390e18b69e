"""Load trained models, from a checkpoint or a published pair of weight files, and export such a pair."""

import pydoc
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lcde.data.formats import read_torch
from lcde.errors import InputError
from lcde.files import readable, require_free, write_atomically
from lcde.models.base import Model
from lcde.models.encoder import require_divisible
from lcde.models.lcde import LCDEModel

File = str | Path | None  # None where none is given
PUBLISHED_NHEAD = 8  # attention heads of the published weights, whose tensors do not tell
CHECKPOINT = "a checkpoint written by train.py (checkpoints/best.ckpt in its run directory)"


@dataclass(frozen=True)
class Trained:
    """A trained model and what its file says of it.

    Attributes
    ----------
    model : Model
    rule_name : str, optional
        Choice of ``clustering=`` that it was trained with; None where the file names none.
    rule_config : dict, optional
        Configuration of that rule. It comes from the file as it is: check its ``_target_`` with `class_named`.
    source : str
        The file, or files, for messages.
    """

    model: Model
    rule_name: str | None
    rule_config: dict[str, Any] | None
    source: str


class StateDict(NamedTuple):
    """Tensors of one network, and the file that holds them."""

    source: str
    tensors: dict[str, Tensor]


def load_trained(
    checkpoint: File, lce_weights: File, pce_weights: File, nhead: int = PUBLISHED_NHEAD
) -> Trained | None:
    """The model of ``checkpoint``, or of a published pair of files; None where neither is given.

    Raises
    ------
    InputError
        As `load_checkpoint` and `load_published`, and where half a pair or both a checkpoint and a pair are given.
    """
    if lce_weights is None and pce_weights is None:
        return None if checkpoint is None else load_checkpoint(checkpoint)
    if checkpoint is None and lce_weights is not None and pce_weights is not None:
        model = load_published(lce_weights, pce_weights, nhead)
        return Trained(model, None, None, f"{lce_weights} and {pce_weights}")
    raise InputError("give either checkpoint=… or both lce_weights=… and pce_weights=….")


def load_checkpoint(path: str | Path) -> Trained:
    """Load a checkpoint that train.py wrote.

    The file can hold only plain values and tensors, and the class that it names must be a `Model`: it runs no code
    of its own. Checkpoints of version 0.1 name no class; they hold LCENet and PCENet.

    Raises
    ------
    InputError
        Where the file is missing or not such a checkpoint.
    """
    with readable(Path(path), CHECKPOINT):
        checkpoint = read_torch(Path(path))
        state, method = checkpoint["state_dict"], checkpoint.get("method")
        if method is None:
            model = _from_tensors(_networks(state, str(path)), checkpoint["hyper_parameters"]["nhead"])
            return Trained(model, None, None, str(path))
        settings, rule = dict(method["model"]), method.get("clustering")
        model = _construct(class_named(settings.pop("_target_"), Model, str(path)), settings)
        model.load_state_dict(state)
        _require_finite(state, str(path))
        return Trained(model, method.get("name"), None if rule is None else dict(rule), str(path))


def class_named(target: object, base: type, source: str) -> Any:
    """The class ``target`` ("package.module.Class") that ``source`` names, which must be a subclass of ``base``.

    Its module is imported, which must be installed here; nothing in it is called.

    Raises
    ------
    InputError
        Where there is no such class, or it is something else.
    """
    if str(target).partition(".")[0] in sys.stdlib_module_names:  # importing some of these modules starts a program
        raise InputError(f"{source} names {target}, which is no {base.__name__}: do not trust this file.")
    try:
        found = pydoc.locate(str(target))
    except pydoc.ErrorDuringImport as error:
        raise InputError(f"{source} needs {target}, which cannot be imported: {_first_line(error)}.") from None
    if found is None:
        if str(target).startswith("lcde."):
            remedy = "name a rule with clustering=…, or install that version"
            raise InputError(f"{source} is of another version of lcde, which had {target}; {remedy}.")
        raise InputError(f"{source} needs {target}, which is not installed here; install its package.")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"{source} names {target}, which is no {base.__name__}: do not trust this file.")
    return found


def load_published(lce_weights: str | Path, pce_weights: str | Path, nhead: int = PUBLISHED_NHEAD) -> LCDEModel:
    """Load a published pair of ``.pth`` files; D, K, depth and widths follow from the shapes of their tensors.

    Raises
    ------
    InputError
        Where a file is missing or not such weights, where the two disagree on D or K, and where ``nhead`` does not
        divide the token widths.
    """
    return _from_tensors({"lcenet": _read_state(lce_weights), "pcenet": _read_state(pce_weights)}, nhead)


def export_published(model: Model, lce_weights: Path, pce_weights: Path) -> None:
    """Write both networks of an `LCDEModel` as the published program reads them.

    Raises
    ------
    InputError
        Where the model is another one, or a file exists already.
    """
    if not isinstance(model, LCDEModel):
        raise InputError(f"only LCDE has a published layout of weights; the checkpoint holds a {type(model).__name__}.")
    require_free(lce_weights, pce_weights)
    for network, path in ((model.lcenet, lce_weights), (model.pcenet, pce_weights)):
        write_atomically(path, partial(torch.save, network.state_dict()))


def start_from(trained: Trained, model: Model) -> None:
    """Copy the weights of ``trained`` to ``model``, of the same class, D and K, which is to be trained further.

    Raises
    ------
    InputError
        Where layers differ.
    """
    layers = trained.model.layer_settings()
    if model.layer_settings() != layers:
        settings = " ".join(f"model.{name}={value}".replace(" ", "") for name, value in layers.items())
        raise InputError(f"{trained.source} holds other layers than model asks for; add {settings}.")
    _load(model, StateDict(trained.source, trained.model.state_dict()))


def require_matching(trained: Trained, feature_dim: int, k: int) -> None:
    """Raise `InputError` unless the model was made for D = ``feature_dim`` and K = ``k`` of the data set."""
    for name, own, value in (("feature_dim", trained.model.feature_dim, feature_dim), ("k", trained.model.k, k)):
        if own not in (None, value):
            found = f"dataset.{name} is {value}; add dataset.{name}={own}"
            raise InputError(f"{trained.source} was trained with {name}={own}, but {found}.")


def _networks(state: Mapping[str, Tensor], source: str) -> dict[str, StateDict]:
    """The parts of a model by their names in it."""
    networks: dict[str, StateDict] = {}
    for name, tensor in state.items():
        network, _, parameter = name.partition(".")
        networks.setdefault(network, StateDict(source, {})).tensors[parameter] = tensor
    return networks


def _from_tensors(networks: Mapping[str, StateDict], nhead: int) -> LCDEModel:
    """The model of ``networks`` by their names in `LCDEModel`; of its parts, ``token_head`` may be missing."""
    lcenet, pcenet = networks["lcenet"], networks["pcenet"]
    lce = _sizes(lcenet, "LCENet", "classifier.0.weight", 1)
    pce = _sizes(pcenet, "PCENet", "adjust_dim.0.weight", 2)
    for name in ("feature_dim", "k"):
        if lce[name] != pce[name]:
            made_for = f"{lcenet.source} was made for {name}={lce[name]}, but {pcenet.source} for {name}={pce[name]}"
            raise InputError(f"{made_for}; give a pair that was trained together.")
    require_divisible(lce["feature_dim"], lce["k"], nhead)
    layers = {name: [lce[name], pce[name]] for name in ("num_layers", "dim_feedforward")}
    # Settings of training, which the files do not tell.
    training = {"dropout": 0.0, "neighbours_per_end": lce["k"], "negative_weight": 1.0}
    model: LCDEModel = _construct(LCDEModel, {**lce, **layers, **training, "nhead": nhead})
    for name, state in networks.items():
        _load(getattr(model, name), state)
    return model


def _construct(model_class: Any, settings: Mapping[str, Any]) -> Any:
    """A model whose initial weights come from a fixed seed and leave the caller's random generator as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return model_class(**settings)


def _load(module: nn.Module, state: StateDict) -> None:
    try:
        module.load_state_dict(state.tensors)
    except RuntimeError as error:
        network = type(module).__name__
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(f"{state.source} does not hold the weights of {network}: {reason}.") from None
    _require_finite(state.tensors, state.source)


def _require_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(f"{source} holds NaN or infinity in {name}: its training diverged; give another file.")


def _read_state(path: str | Path) -> StateDict:
    with readable(Path(path), "a file of weights"):
        state = read_torch(Path(path))
        # Some training programs save the DataParallel wrapper, whose names begin with "module.".
        return StateDict(str(path), {name.removeprefix("module."): tensor for name, tensor in state.items()})


def _sizes(state: StateDict, network: str, head: str, tokens_per_k: int) -> dict[str, int]:
    """Sizes of a ``network`` of ``tokens_per_k``·K tokens; ``head`` is its first layer after the encoder."""
    tensors = state.tensors
    try:
        hidden, width = tensors["encoder.layers.0.linear1.weight"].shape
        feature_dim = len(tensors[head])
    except KeyError as error:
        reason = f"{state.source} lacks {error}, a tensor of {network}: it is damaged or holds other networks"
        raise InputError(f"{reason}; give another file.") from None
    num_layers = len({name.split(".")[2] for name in tensors if name.startswith("encoder.layers.")})
    k = (width - feature_dim) // tokens_per_k
    return {"feature_dim": feature_dim, "k": k, "num_layers": num_layers, "dim_feedforward": hidden}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
