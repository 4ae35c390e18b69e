"""LCDE as a scikit-learn estimator."""

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from pytorch_lightning.utilities.seed import isolate_rng
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from lcde.clustering.components import label_noise
from lcde.configuration import build, choose_rule, compose_config, plain
from lcde.data.datasets import Parts
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery
from lcde.data.knn import build_knn, own_graph, with_reference
from lcde.errors import InputError
from lcde.methods.classical import ThresholdRule
from lcde.methods.method import Method, Rule
from lcde.methods.saved import SavedClustering
from lcde.models.weights import Trained, load_checkpoint, load_published, load_trained
from lcde.resources import limit_threads, require_memory
from lcde.settings import Within, check_settings
from lcde.training.fit import set_up


@dataclass(eq=False, repr=False)  # scikit-learn has its own
class LCDE(ClusterMixin, BaseEstimator):
    """Cluster embeddings: at once without labels, or with a model trained on labelled ones.

    ``fit_predict(X)`` clusters X with the model of ``checkpoint``, of ``lce_weights`` and ``pce_weights``, or of an
    earlier ``fit(X, y)``; without any, by a rule that needs none. ``fit(X, y)`` trains a model on embeddings X of
    identities y, then clusters X. Rows of X are directions: their lengths make no difference.

    Parameters
    ----------
    k : int
        Neighbours, the face itself counted; fewer where there are fewer faces and no trained model.
    clustering : str
        Choice of ``clustering=`` of the command line, such as "exact" or "components"; "auto" takes the rule of the
        checkpoint, or "unsupervised" without a model.
    model : str
        Choice of ``model=`` that ``fit(X, y)`` trains.
    overrides : sequence of str
        Further settings as on the command line, such as "clustering.similarity_threshold=0.6" or "model.dropout=0.2".
    config_dir : path, optional
        Folder of your own YAML files for ``clustering`` and ``model``.
    density_threshold : float, optional
        Faces of lower density get label -1.
    min_cluster_size : int
        Faces of smaller clusters get label -1.
    max_epochs : int, optional
        Epochs of training; None for as many as ``lcde train`` takes.
    checkpoint : path, optional
        Checkpoint of a training run.
    lce_weights, pce_weights : path, optional
        A published pair of weight files.
    device : str
        "auto" for an NVIDIA GPU if there is one, or a torch device such as "cuda:1" or "mps".
    random_state : int
        Seed of training and of community detection. The caller's random generators are left as they are.
    reference : (R, D) array, optional
        Embeddings of other people, by the same embedder and without labels. They are clustered together with X and left
        out of the results; `assign` does without them. An album of one person or of few photographs needs them: it does
        not tell what strangers look like.

    Attributes
    ----------
    labels_ : (N,) int64
        Clusters from 0, -1 for noise.
    n_clusters_ : int
        Noise not counted.
    n_features_in_ : int
        Width D of the embeddings.
    density_ : (N,) float64 or None
        Density of each face, None where the rule has none.
    connectivity_ : (N, K) float32 or None
        Symmetrised connectivity of each face to its neighbours, None where the rule has none.
    model_ : PairModel or None
        The trained model.
    """

    k: Annotated[int, Within(2)] = 80
    clustering: str = "auto"
    model: str = "lcde"
    overrides: Sequence[str] = ()
    config_dir: str | Path | None = None
    density_threshold: Annotated[float | None, Within(0)] = None
    min_cluster_size: Annotated[int, Within(1)] = 1
    max_epochs: Annotated[int | None, Within(1)] = None
    checkpoint: str | Path | None = None
    lce_weights: str | Path | None = None
    pce_weights: str | Path | None = None
    device: str = "auto"
    random_state: Annotated[int, Within(0)] = 0
    reference: np.ndarray | None = None
    _trained: Trained | None = field(init=False, default=None)

    @classmethod
    def from_checkpoint(cls, path: str | Path, **parameters: Any) -> "LCDE":
        """An estimator with the model of a checkpoint and its K."""
        return cls(**{"k": load_checkpoint(path).model.k or cls.k, "checkpoint": str(path), **parameters})

    @classmethod
    def from_published(cls, lce_weights: str | Path, pce_weights: str | Path, **parameters: Any) -> "LCDE":
        """An estimator with a published pair of networks and their K."""
        k = load_published(lce_weights, pce_weights).k
        return cls(k=k, lce_weights=str(lce_weights), pce_weights=str(pce_weights), **parameters)

    def fit(
        self, X: np.ndarray, y: np.ndarray | None = None, graph: tuple[np.ndarray, np.ndarray | None] | None = None
    ) -> "LCDE":
        """Cluster X; with identities, train on them first.

        Parameters
        ----------
        X : (N, D) array
            Embeddings, of any float or integer type, a memory map too.
        y : (N,) array, optional
            Identities: numbers or names.
        graph : pair of arrays, optional
            Your own kNN graph: neighbours (N, K') with K' >= k, and their cosine similarities (N, K') or None.

        Raises
        ------
        ValueError
            On unusable parameters or values, or a checkpoint or graph that does not fit X.
        """
        check_settings(self, "")
        config = self._compose(training=y is not None)
        source = self.checkpoint, self.lce_weights, self.pce_weights
        # A model that fit(X, y) trained stays until another is named.
        stays = y is None and getattr(self, "_source", None) == source
        trained = self._trained if stays else load_trained(*source)
        name = choose_rule(config, "lcde" if y is not None and self.clustering == "auto" else self.clustering, trained)
        rule = self._make_rule(config)
        if y is None:
            method = Method(name, rule, None if trained is None else trained.model)
        checked = validate_data(self, X, y, dtype=np.float32, copy=True)
        X, y = (checked, None) if y is None else checked
        limit_threads()
        require_memory("X", X.shape, min(self.k, len(X)))
        features, k = normalise(X, "X"), self.k
        knn = build_knn(features, min(k, len(X))) if graph is None else own_graph(*graph, features, k, "graph")
        gallery = Gallery("X", features, knn)
        if self.reference is not None:
            others = check_array(self.reference, dtype=np.float32, copy=True, input_name="reference")
            gallery = with_reference(gallery, normalise(others, "reference"), k, "reference")
        if y is not None:
            trained = self._train(config, name, gallery, np.unique(y, return_inverse=True)[1], trained)
            method = Method(name, rule, trained.model)
        self._source, self._trained, self._method = source, trained, method
        self.model_ = None if trained is None else trained.model.to(self._device())
        clustering = method.cluster(gallery)
        assert clustering is not None and clustering.noise is not None  # there is one process
        self._gallery, self._clustering = gallery, clustering
        self.labels_ = label_noise(clustering.labels, clustering.noise)
        self.n_clusters_ = int(self.labels_.max()) + 1
        self.density_ = clustering.details.density
        self.connectivity_ = clustering.details.connectivity
        return self

    def assign(self, X: np.ndarray) -> np.ndarray:
        """Labels of new faces: of the clusters there are, or new ones from `n_clusters_` on; no known face moves.

        Parameters
        ----------
        X : (n, D) array

        Returns
        -------
        (n,) int64

        Raises
        ------
        ValueError
            Where the rule cannot assign new faces, or X is unusable.
        """
        check_is_fitted(self, "labels_")
        features = normalise(validate_data(self, X, dtype=np.float32, copy=True, reset=False), "X")
        known = SavedClustering.of(self._gallery, self._clustering, self.k, self._method.rule)
        return known.assign(features, self.model_ if known.rule.needs_scores else None).labels[len(self.labels_) :]

    def _compose(self, training: bool) -> DictConfig:
        """The configuration of ``lcde train``, so that overrides for training are checked in `fit(X)` too.

        The rule of "auto" is left to `choose_rule` unless ``training``.
        """
        device = self._device()
        settings = [f"model={self.model}", f"seed={self.random_state}", "~logger", "callbacks=training"]
        without = ("limit_val_batches=0", "enable_checkpointing=false", "enable_progress_bar=false")
        settings += [f"+trainer.{setting}" for setting in without]
        settings += [f"trainer.accelerator={device.type}", f"trainer.devices={[device.index] if device.index else 1}"]
        settings += [] if training and self.clustering == "auto" else [f"clustering={self.clustering}"]
        settings += [] if self.max_epochs is None else [f"trainer.max_epochs={self.max_epochs}"]
        try:
            return compose_config("train", [*settings, *self.overrides], self.config_dir)
        except HydraException as error:
            given = f"clustering={self.clustering}, model={self.model} and overrides={list(self.overrides)}"
            reason = str(error).partition("\n")[0].rstrip(".")
            raise InputError(f"{given} cannot be used: {reason}; `lcde train --help` shows what there is.") from None

    def _make_rule(self, config: DictConfig) -> Rule:
        """The rule of ``config`` with the noise that the parameters ask for."""
        rule = build(config.clustering)
        if self.min_cluster_size != 1:
            rule = replace(rule, min_cluster_size=self.min_cluster_size)
        if self.density_threshold is not None:
            rule = replace(rule, density_threshold=self.density_threshold)
        if isinstance(rule, ThresholdRule):
            rule.require_threshold()
        return rule

    def _train(
        self, config: DictConfig, name: str, gallery: Gallery, labels: np.ndarray, start: Trained | None
    ) -> Trained:
        """Train on ``gallery`` of identities ``labels`` (N,) with the settings of ``lcde train``."""
        if not labels.any():
            raise InputError(f"training needs two identities or more, but y names 1 class of n_samples={len(labels)}.")
        dataset = _InMemory(gallery.graph.k, gallery.features.shape[1], replace(gallery, labels_true=labels))
        with tempfile.TemporaryDirectory() as folder, _own_random_state(self.random_state):
            config.run_dir = folder
            if "nhead" in config.model and not any("model.nhead" in text for text in self.overrides):
                config.model.nhead = math.gcd(config.model.nhead, dataset.feature_dim, dataset.k)
            training = set_up(config, name, dataset, start)
            training.trainer.fit(training.model, training.datamodule)
        training.model.trainer = None  # which holds the data and cannot be pickled
        return Trained(training.model, name, plain(config.clustering), "the model trained on X and y")

    def _device(self) -> torch.device:
        best = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(best if self.device == "auto" else self.device)


@dataclass
class _InMemory:
    """A data set whose training part is in memory, without held-out identities."""

    k: int
    feature_dim: int
    gallery: Gallery

    def load(self, train: bool) -> Parts:
        return Parts(self.gallery if train else None, None, [])


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Seed all global generators, and leave them, and torch's choice of algorithms, as they were."""
    deterministic, environment = torch.are_deterministic_algorithms_enabled(), dict(os.environ)
    with isolate_rng():
        pl.seed_everything(seed, verbose=False)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            os.environ.clear()
            os.environ.update(environment)
