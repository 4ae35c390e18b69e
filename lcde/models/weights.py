"""Load trained networks, from a checkpoint or a published pair of weight files, and export such a pair."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lcde.data.formats import require_free, write_atomically
from lcde.errors import InputError
from lcde.models.encoder import require_divisible
from lcde.models.lcenet import LCENet
from lcde.models.pcenet import PCENet


class NetworkPair(NamedTuple):
    """Both trained networks, the D and K they were made for, and the file that `InputError`s name."""

    lcenet: LCENet
    pcenet: PCENet
    feature_dim: int
    k: int
    source: str


class Sizes(NamedTuple):
    """What the tensors of one published state dict tell of its network."""

    feature_dim: int
    k: int
    num_layers: int
    dim_feedforward: int


def load_networks(
    checkpoint: str | Path | None, lce_weights: str | Path | None, pce_weights: str | Path | None, nhead: int
) -> NetworkPair | None:
    """The networks of ``checkpoint``, or of the published pair; None where none are named.

    Raises `InputError` as `load_checkpoint` and `load_published` do, and on half a pair or both choices.
    """
    given = [checkpoint is not None, lce_weights is not None, pce_weights is not None]
    if given == [True, False, False]:
        return load_checkpoint(checkpoint)
    if given == [False, True, True]:
        return load_published(lce_weights, pce_weights, nhead)
    if any(given):
        raise InputError("give either checkpoint=… or both lce_weights=… and pce_weights=….")
    return None


def load_checkpoint(path: str | Path) -> NetworkPair:
    """Load a checkpoint that train.py wrote; it can hold only plain values and tensors, so it runs no code.

    Raises `InputError` where the file is missing or not such a checkpoint.
    """
    if not Path(path).is_file():
        raise InputError(
            f"checkpoint {path} does not exist; train.py writes checkpoints/best.ckpt in its run directory."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state, nhead = checkpoint["state_dict"], checkpoint["hyper_parameters"]["nhead"]
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError) as error:
        raise InputError(f"{path} is not a checkpoint written by train.py: {_first_line(error)}.") from None
    states = [
        {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for prefix in ("lcenet.", "pcenet.")
    ]
    return _network_pair(states, (path, path), nhead, str(path))


def load_published(lce_weights: str | Path, pce_weights: str | Path, nhead: int) -> NetworkPair:
    """Load a published pair of ``.pth`` files; D, K, depth and widths follow from the shapes of their tensors.

    Raises `InputError` where a file is missing or not such weights, where the two disagree on D or K, and where
    ``nhead``, which no tensor tells, does not divide the token widths.
    """
    paths = lce_weights, pce_weights
    return _network_pair([_read_state(path) for path in paths], paths, nhead, f"{lce_weights} and {pce_weights}")


def export_published(pair: NetworkPair, lce_weights: Path, pce_weights: Path) -> None:
    """Write both networks as the published program reads them; raises `InputError` where a file is in the way."""
    require_free(lce_weights, pce_weights)
    for network, path in ((pair.lcenet, lce_weights), (pair.pcenet, pce_weights)):
        state = network.state_dict()
        write_atomically(path, lambda file, state=state: torch.save(state, file))


def start_from(pair: NetworkPair, lcenet: LCENet, pcenet: PCENet) -> None:
    """Give the weights of ``pair`` to ``lcenet`` and ``pcenet`` of the same D and K, which are to be trained further.

    Raises `InputError` where their layers are others, or those of the two networks of ``pair`` differ.
    """
    sizes = layer_sizes(pair.lcenet)
    if layer_sizes(pair.pcenet) != sizes:
        raise InputError(f"{pair.source} holds two networks of different layers; give a pair of the same to train on.")
    if layer_sizes(lcenet) != sizes:
        settings = " ".join(f"model.{name}={value}" for name, value in sizes.items())
        raise InputError(f"{pair.source} holds other layers than model asks for; add {settings}.")
    lcenet.load_state_dict(pair.lcenet.state_dict())
    pcenet.load_state_dict(pair.pcenet.state_dict())


def layer_sizes(network: LCENet | PCENet) -> dict[str, int]:
    """What D and K leave open of a network, by the names that `LCDEModule` gives it."""
    layers = network.encoder.layers
    width = layers[0].linear1.out_features
    return {"num_layers": len(layers), "nhead": layers[0].self_attn.nhead, "dim_feedforward": width}


def require_matching(pair: NetworkPair, feature_dim: int, k: int, source: str | None = None) -> None:
    """Raise `InputError` unless the networks were made for D = ``feature_dim`` and K = ``k``.

    ``source`` names what has these sizes, None for the settings of ``dataset``.
    """
    for name, own, value in (("feature_dim", pair.feature_dim, feature_dim), ("k", pair.k, k)):
        if own != value:
            found = f"{source} has {name}={value}" if source else f"dataset.{name} is {value}; add dataset.{name}={own}"
            raise InputError(f"{pair.source} was trained with {name}={own}, but {found}.")


def _network_pair(
    states: Sequence[dict[str, Tensor]], paths: Sequence[str | Path], nhead: int, source: str
) -> NetworkPair:
    """LCENet and PCENet of two state dicts, which were read from ``paths``; ``source`` names both."""
    lce_weights, pce_weights = paths
    lce, pce = sizes = [
        _sizes(states[0], lce_weights, LCENet, "classifier.0.weight", 1),
        _sizes(states[1], pce_weights, PCENet, "adjust_dim.0.weight", 2),
    ]
    if (lce.feature_dim, lce.k) != (pce.feature_dim, pce.k):
        raise InputError(
            f"{lce_weights} was made for feature_dim={lce.feature_dim}, k={lce.k}, "
            f"but {pce_weights} for feature_dim={pce.feature_dim}, k={pce.k}; give a pair that was trained together."
        )
    require_divisible(lce.feature_dim, lce.k, nhead)
    networks = [
        network(size.feature_dim, size.k, size.num_layers, nhead, size.dim_feedforward, dropout=0.0)
        for network, size in zip((LCENet, PCENet), sizes, strict=True)
    ]
    for network, state, path in zip(networks, states, paths, strict=True):
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(f"{path} does not hold the weights of {type(network).__name__}: {error}.") from None
    return NetworkPair(*networks, lce.feature_dim, lce.k, source)


def _read_state(path: str | Path) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise InputError(f"weights {path} do not exist.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, KeyError, EOFError) as error:
        raise InputError(f"{path} is not a file of weights: {_first_line(error)}.") from None
    # Some training programs save the DataParallel wrapper, whose names begin with "module.".
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _sizes(
    state: dict[str, Tensor], path: str | Path, network: type[LCENet | PCENet], head: str, tokens_per_k: int
) -> Sizes:
    """Sizes of a ``network`` of ``tokens_per_k``·K tokens; ``head`` is its first layer behind the encoder."""
    try:
        width, feature_dim = state["encoder.layers.0.linear2.weight"].shape[0], state[head].shape[0]
        num_layers = len({name.split(".")[2] for name in state if name.startswith("encoder.layers.")})
        dim_feedforward = state["encoder.layers.0.linear1.weight"].shape[0]
    except KeyError as error:
        what = f"{error}, a tensor of {network.__name__}"
        raise InputError(f"{path} lacks {what}: it is damaged or holds other networks; give another file.") from None
    return Sizes(feature_dim, (width - feature_dim) // tokens_per_k, num_layers, dim_feedforward)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
