"""What follows the networks, stage by stage and as a whole, on synthetic graphs of growing size."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from hydra.utils import instantiate

from benchmarks.configs import configured
from benchmarks.graphs import identity_features, identity_graph, labelings
from benchmarks.measure import Case, Options
from lcde.clustering.components import connected_labels
from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import official_similarity_threshold, select_edges
from lcde.metrics import Contingency, bcubed, pairwise

SEED = 0
FEATURE_DIM = 64  # enough for centroids to tell identities apart


def cases(options: Options) -> list[Case]:
    """Each stage on graphs N × ``k`` of growing N; "graph to labels" chains them, in both modes."""
    k = options.k
    stages = {
        "symmetrise, density": partial(_density, k=k),
        "edges": partial(_edges, k=k),
        "components": _components,
        "metrics": _metrics,
    }
    contenders = {name: {"lcde": prepare} for name, prepare in stages.items()}
    modes = {"exact": "exact", "fast": "lcde"}
    contenders["graph to labels"] = {by: partial(_graph_to_labels, k=k, mode=mode) for by, mode in modes.items()}
    return [
        Case("stages", name, size, {by: partial(prepare, size) for by, prepare in prepares.items()})
        for name, prepares in contenders.items()
        for size in options.sizes
    ]


def _density(num_faces: int, k: int) -> Callable[[], None]:
    indices, similarities, connectivity, _ = identity_graph(num_faces, k, SEED)

    def job() -> None:
        density(symmetrise(connectivity, indices), similarities)

    return job


def _edges(num_faces: int, k: int) -> Callable[[], None]:
    indices, similarities, connectivity, _ = identity_graph(num_faces, k, SEED)
    densities = density(connectivity, similarities)

    def job() -> None:
        select_edges(indices, similarities, connectivity, densities, official_similarity_threshold(similarities))

    return job


def _components(num_faces: int) -> Callable[[], None]:
    friends = identity_graph(num_faces, 6, SEED)[0][:, :4]
    edges = np.stack([friends[:, [0, 0, 0]], friends[:, 1:]], axis=2).reshape(-1, 2).astype(np.int64)

    def job() -> None:
        connected_labels(edges, num_faces)

    return job


def _metrics(num_faces: int) -> Callable[[], None]:
    labels_true, labels = labelings(num_faces, SEED)

    def job() -> None:
        table = Contingency.of(labels_true, labels)
        pairwise(table), bcubed(table)

    return job


@dataclass(frozen=True)
class _KnownNetworks:
    """Networks that answer at once: the given connectivity, and whether an edge joins one identity."""

    directed: np.ndarray
    labels_true: np.ndarray

    def connectivity(self) -> np.ndarray:
        return self.directed

    def edge_probability(self, edges: np.ndarray) -> np.ndarray:
        return (self.labels_true[edges[:, 0]] == self.labels_true[edges[:, 1]]).astype(np.float32)


def _graph_to_labels(num_faces: int, k: int, mode: str) -> Callable[[], dict[str, float]]:
    indices, similarities, connectivity, labels_true = identity_graph(num_faces, k, SEED)
    networks = _KnownNetworks(connectivity, labels_true)
    cluster = instantiate(configured("eval", f"clustering={mode}").clustering)
    width = 0 if cluster.strangers_per_centroid is None else FEATURE_DIM  # of what is not read, nothing is held
    features = identity_features(labels_true, width, SEED)

    def job() -> dict[str, float]:
        clustering = cluster(features, indices, similarities, networks)
        table = Contingency.of(labels_true, clustering.labels)
        edges = len(clustering.edges_density) + len(clustering.edges_similar)
        return {"edges per face": edges / num_faces, "pairwise F": pairwise(table).f_score}

    return job
