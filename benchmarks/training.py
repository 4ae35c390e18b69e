"""Training pairs per second: batches of indices, beside a loader that copies the tokens of every pair.

The copying loader builds each pair's tokens as the published inference code does, and feeds the same networks with
the same `Trainer`, in float32 and with all neighbours of both ends. A training step is timed as a whole, and the
loader alone up to the tokens of both networks.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import Case, Options, Run, peak_memory_mb
from lcde.configuration import build, compose_config
from lcde.data.gallery import Gallery
from lcde.models.base import Neighbourhoods, PairModel
from lcde.models.tokens import tokens
from lcde.training.datamodule import EdgePairDataModule

# The default synthetic benchmark, and one of MS1M's sizes: overrides, and steps that are timed.
SETTINGS = {
    "D=64, K=24": ([], 30),
    "D=256, K=80": (["dataset.feature_dim=256", "dataset.k=80", "dataset.num_identities={part0_train:400}"], 4),
}


class PairTokens(Dataset):
    """Tokens and labels of one pair at a time, copied from the arrays of a gallery."""

    def __init__(self, gallery: Gallery, pairs: np.ndarray) -> None:
        self.gallery, self.pairs = gallery, pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> tuple[np.ndarray, ...]:
        """LCENet's tokens (K, D + K) of both ends, PCENet's (2K, D + 2K), labels as `Neighbourhoods`, the pair."""
        gallery, pair = self.gallery, self.pairs[position]
        indices, labels = gallery.graph.indices[pair], gallery.labels_true[pair]
        neighbours = [gallery.features[row] for row in indices]
        faces = [*neighbours, np.concatenate(neighbours)]
        same_as_end = labels[:, None, None] == gallery.labels_true[indices]
        return (
            *(np.concatenate([each, each @ each.T], axis=1) for each in faces),
            same_as_end.astype(np.int64),
            np.int64(labels[0] == labels[1]),
            pair,
        )


class CopyingData(EdgePairDataModule):
    """The data module with a plain loader of `PairTokens`."""

    def _loader(self, gallery: Gallery, pairs: np.ndarray) -> DataLoader:
        return DataLoader(PairTokens(gallery, pairs), self.batch_size)

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> Neighbourhoods:
        """Return the features; the networks append the similarities again, a few thousandths of a step."""
        *_, pair_tokens, same_as_end, same_identity, pairs = batch
        features = pair_tokens[..., : self.train_gallery.features.shape[1]].unflatten(1, (2, -1))
        graph = self._graph(self.train_gallery, pairs.device)
        return Neighbourhoods(features, same_as_end, same_identity, pairs, graph)


PLAIN = ["trainer.precision=32-true", "model.neighbours_per_end=${dataset.k}"]
# The data module, and overrides.
CONTENDERS = {
    "lcde": (EdgePairDataModule, []),
    "lcde, all neighbours": (EdgePairDataModule, PLAIN[1:]),
    "lcde, all neighbours, float32": (EdgePairDataModule, PLAIN),
    "copying loader": (CopyingData, PLAIN),
}


def cases(options: Options) -> list[Case]:
    """A training step and the loader alone, for each of `SETTINGS`."""
    found = []
    for name, (overrides, steps) in SETTINGS.items():
        num_faces = len(read_data(EdgePairDataModule, overrides).train_gallery)
        step = {
            by: partial(prepare_training, kind, [*overrides, *own], steps) for by, (kind, own) in CONTENDERS.items()
        }
        loaders = {by: partial(_loading, CONTENDERS[by][0], overrides, steps) for by in ("lcde", "copying loader")}
        found.append(Case("training", f"training step, {name}", num_faces, step))
        found.append(Case("training", f"loader alone, {name}", num_faces, loaders))
    return found


def prepare_training(kind: type[EdgePairDataModule], overrides: list[str], steps: int) -> Callable[[], Run]:
    """A job of ``steps`` training steps, after one that is not timed."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    config = compose_config("train", [*overrides, "trainer.default_root_dir=null"])
    data = read_data(kind, overrides)

    def job() -> Run:
        torch.manual_seed(config.seed)
        model = build(config.model, feature_dim=config.dataset.feature_dim, k=config.dataset.k)
        clock = Clock()
        trainer = build(
            config.trainer,
            max_epochs=1,
            limit_train_batches=steps + 1,  # the first one warms up
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[clock],
        )
        trainer.fit(model, data)
        return _run(clock.ends[-1] - clock.ends[0], data.batch_size * (len(clock.ends) - 1))

    return job


class Clock(Callback):
    """The time at which each training step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        """Record the time."""
        self.ends.append(_now())


def _loading(kind: type[EdgePairDataModule], overrides: list[str], steps: int) -> Callable[[], Run]:
    data = read_data(kind, overrides)
    data.trainer = Stage(build(compose_config("train", overrides).model))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def job() -> Run:
        loader = data.train_dataloader()
        start = _now()
        count = 0
        for batch, _ in zip(loader, range(steps), strict=False):
            batch = data.on_after_batch_transfer(move_data_to_device(batch, device), 0)
            count += len(batch.features)
            if kind is EdgePairDataModule:  # the other one has made the tokens
                tokens(batch.features.flatten(0, 1)), tokens(batch.features.flatten(1, 2))
        return _run(_now() - start, count)

    return job


@dataclass
class Stage:
    """What the data module reads of a trainer."""

    lightning_module: PairModel
    current_epoch: int = 0
    training: bool = True


def read_data(kind: type[EdgePairDataModule], overrides: list[str]) -> EdgePairDataModule:
    """The data module of ``overrides`` with its training part."""
    config = compose_config("train", [*overrides, "dataset.parts=[]", "dataset.held_out_identities=20"])
    return kind(dataset=build(config.dataset), **build(config.data).keywords)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _run(seconds: float, pairs: int) -> Run:
    return Run(seconds, peak_memory_mb(), {"pairs per second": pairs / seconds})
