"""LCDE as a scikit-learn estimator."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from lcde.callbacks import PairRefresh
from lcde.clustering.pipeline import Clustering
from lcde.data.formats import normalise
from lcde.data.knn import build_knn
from lcde.data.part import Part
from lcde.errors import InputError
from lcde.models.scoring import GraphScorer
from lcde.models.weights import (
    NetworkPair,
    layer_sizes,
    load_checkpoint,
    load_networks,
    load_published,
    require_matching,
    start_from,
)
from lcde.saved_clustering import SavedClustering
from lcde.trainer import make_trainer

CONF = Path(__file__).parents[1] / "conf"


class LCDE(ClusterMixin, BaseEstimator):
    """Cluster face embeddings, without labels at once, or with networks trained on labelled ones.

    `fit_predict(X)` clusters ``X`` (N, D) with the networks of ``checkpoint``, of ``lce_weights`` and ``pce_weights``,
    or of an earlier ``fit(X, y)``; without any, by Infomap and centroids, whose thresholds come from the data, seen
    as a first such clustering lets them be.
    Rows of ``X`` are directions: their lengths make no difference, and a row of zeros has none and is refused.
    ``fit(X, y)`` trains networks on faces ``X`` of identities ``y``, from those that are named on if any are, then
    clusters ``X``.

    Parameters
    ----------
    k : neighbours, the face itself counted; fewer are used where there are fewer faces and no trained networks.
    similarity_threshold : τ of the similar edges, None for the official rule, the mean similarity to the 3 nearest.
    edge_threshold : a density edge joins above this probability.
    exact : whether to give the labels of the published program with trained networks, without shortcuts and merging.
    density_threshold, min_cluster_size : faces of lower density and of smaller clusters get label -1.
    max_epochs : of training, None for as many as train.py takes.
    checkpoint : a .ckpt of train.py; lce_weights, pce_weights : a published pair of .pth files.
    device : "auto" for a GPU if there is one, or a torch device.
    random_state : seed of training, and of Infomap where no networks are given.

    Attributes
    ----------
    labels_ : (N,) int64, -1 for noise
    density_ : (N,) float64
    connectivity_ : (N, K) float32
    n_clusters_ : clusters, noise not counted
    n_features_in_ : D
    networks_ : the trained networks, or None
    """

    def __init__(
        self,
        k: int = 80,
        similarity_threshold: float | None = None,
        edge_threshold: float = 0.5,
        exact: bool = False,
        density_threshold: float | None = None,
        min_cluster_size: int = 1,
        max_epochs: int | None = None,
        checkpoint: str | None = None,
        lce_weights: str | None = None,
        pce_weights: str | None = None,
        device: str = "auto",
        random_state: int = 0,
    ) -> None:
        self.k = k
        self.similarity_threshold = similarity_threshold
        self.edge_threshold = edge_threshold
        self.exact = exact
        self.density_threshold = density_threshold
        self.min_cluster_size = min_cluster_size
        self.max_epochs = max_epochs
        self.checkpoint = checkpoint
        self.lce_weights = lce_weights
        self.pce_weights = pce_weights
        self.device = device
        self.random_state = random_state

    @classmethod
    def from_checkpoint(cls, path: str | Path, **parameters: Any) -> "LCDE":
        """An estimator with the networks of a checkpoint and their K."""
        return cls(k=load_checkpoint(path).k, checkpoint=str(path), **parameters)

    @classmethod
    def from_published(cls, lce_weights: str | Path, pce_weights: str | Path, **parameters: Any) -> "LCDE":
        """An estimator with a published pair of networks and their K."""
        k = load_published(lce_weights, pce_weights, nhead=8).k
        return cls(k=k, lce_weights=str(lce_weights), pce_weights=str(pce_weights), **parameters)

    def fit(self, X: np.ndarray, y: np.ndarray | None = None) -> "LCDE":
        """Cluster ``X`` (N, D); with identities ``y`` (N,), train on them first. Raises ValueError on bad input."""
        if self.k < 2:
            raise InputError(f"k={self.k} must be 2 or more: it counts the face itself.")
        if y is None:
            features = normalise(validate_data(self, X, dtype=np.float32, copy=True), "X")
        else:
            X, y = validate_data(self, X, y, dtype=np.float32, copy=True)
            features = normalise(X, "X")
            self.networks_ = self._train(features, np.unique(y, return_inverse=True)[1])
        if not hasattr(self, "networks_"):
            self.networks_ = load_networks(self.checkpoint, self.lce_weights, self.pce_weights, nhead=8)
        part = _part(features, None, self.k)
        clustered = self._cluster(part)
        self._known = SavedClustering.of(part, clustered, self.k, self.networks_ is not None)
        self.labels_ = self._known.labels
        self.density_ = clustered.density
        self.connectivity_ = clustered.connectivity
        self.n_clusters_ = int(self.labels_.max()) + 1
        return self

    def assign(self, X: np.ndarray) -> np.ndarray:
        """Labels (n,) int64 of new faces ``X`` (n, D): of the clusters there are, or new ones from `n_clusters_` on.

        No known face moves. A new face joins where it has edges by the rule of the clustering, noise never.
        """
        check_is_fitted(self, "labels_")
        features = normalise(validate_data(self, X, dtype=np.float32, copy=True, reset=False), "X")
        bind = None if self.networks_ is None else self._scorer
        return self._known.assign(features, bind).labels[len(self.labels_) :]

    def _train(self, features: np.ndarray, labels: np.ndarray) -> NetworkPair:
        """Train on (N, D) features of (N,) identities with the settings of train.py."""
        if not labels.any():
            raise InputError(f"training needs two identities or more, but y names 1 class of n_samples={len(labels)}.")
        part = _part(features, labels, self.k)
        feature_dim, k = features.shape[1], part.k
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", [f"seed={self.random_state}"])
        pl.seed_everything(self.random_state, verbose=False)
        start = load_networks(self.checkpoint, self.lce_weights, self.pce_weights, nhead=8)
        layers = {"nhead": math.gcd(8, feature_dim, k)}
        if start is not None:
            require_matching(start, feature_dim, k, f"the graph of {len(features)} faces")
            layers = layer_sizes(start.lcenet)
        module = instantiate(config.model, feature_dim=feature_dim, k=k, **layers)
        if start is not None:
            start_from(start, module.lcenet, module.pcenet)
        datamodule = instantiate(config.data)(dataset=_InMemory(k, feature_dim, part))
        trainer = make_trainer(
            accelerator="auto" if self.device == "auto" else torch.device(self.device).type,
            precision=config.trainer.precision,
            max_epochs=self.max_epochs or config.trainer.max_epochs,
            gradient_clip_val=config.trainer.gradient_clip_val,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            callbacks=[PairRefresh()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule)
        return NetworkPair(module.lcenet, module.pcenet, feature_dim, k, "the networks trained on X and y")

    def _cluster(self, part: Part) -> Clustering:
        noise = {"density_threshold": self.density_threshold, "min_cluster_size": self.min_cluster_size}
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("eval", [f"seed={self.random_state}", f"clustering={'exact' if self.exact else 'lcde'}"])
        if self.networks_ is None:
            unsupervised = instantiate(config.unsupervised, **noise)
            return unsupervised(part.features, part.indices, part.similarities)
        thresholds = {"similarity_threshold": self.similarity_threshold, "edge_threshold": self.edge_threshold}
        clustering = instantiate(config.clustering, **thresholds, **noise)
        scorer = self._scorer(part.features, part.indices, clustering.precision)
        return clustering(part.features, part.indices, part.similarities, scorer)

    def _scorer(self, features: np.ndarray, indices: np.ndarray, precision: str = "float32") -> GraphScorer:
        require_matching(self.networks_, features.shape[1], indices.shape[1], f"the graph of {len(features)} faces")
        device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        )
        networks = self.networks_.lcenet.to(device), self.networks_.pcenet.to(device)
        return GraphScorer(*networks, features, indices, precision)


@dataclass
class _InMemory:
    """A data set whose training part is there already."""

    k: int
    feature_dim: int
    part: Part

    def has_train(self) -> bool:
        return True

    def load(self, train: bool) -> tuple[Part | None, list[Part]]:
        return self.part if train else None, []


def _part(features: np.ndarray, labels: np.ndarray | None, k: int) -> Part:
    """A part of (N, D) features with the graph of ``k`` neighbours, or of all N where they are fewer."""
    return Part("X", features, *build_knn(features, min(k, len(features))), labels)
