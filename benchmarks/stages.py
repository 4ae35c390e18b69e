"""What follows the networks, stage by stage and as a whole, on synthetic graphs of growing size."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.graphs import identity_features, identity_graph, labelings
from benchmarks.measure import Case, Options
from lcde.clustering.components import connected_labels
from lcde.clustering.density import density, symmetrise
from lcde.clustering.edges import official_similarity_threshold, select_edges
from lcde.configuration import build, compose_config
from lcde.data.gallery import Gallery
from lcde.metrics import Contingency, bcubed, pairwise

SEED = 0
FEATURE_DIM = 64  # enough for centroids to tell identities apart


def cases(options: Options) -> list[Case]:
    """Each stage on graphs N x ``k`` of growing N; "graph to labels" is the whole of each rule."""
    k = options.k
    stages = {
        "symmetrise, density": partial(_density, k=k),
        "edges": partial(_edges, k=k),
        "components": _components,
        "metrics": _metrics,
    }
    contenders = {name: {"lcde": prepare} for name, prepare in stages.items()}
    contenders["graph to labels"] = {rule: partial(_graph_to_labels, k=k, rule=rule) for rule in ("exact", "lcde")}
    return [
        Case("stages", name, size, {by: partial(prepare, size) for by, prepare in prepares.items()})
        for name, prepares in contenders.items()
        for size in options.sizes
    ]


def _density(num_faces: int, k: int) -> Callable[[], None]:
    graph, connectivity, _ = identity_graph(num_faces, k, SEED)

    def job() -> None:
        density(symmetrise(connectivity, graph.indices), graph.similarities)

    return job


def _edges(num_faces: int, k: int) -> Callable[[], None]:
    graph, connectivity, _ = identity_graph(num_faces, k, SEED)
    densities = density(connectivity, graph.similarities)

    def job() -> None:
        select_edges(graph, connectivity, densities, official_similarity_threshold(graph.similarities))

    return job


def _components(num_faces: int) -> Callable[[], None]:
    genuine = identity_graph(num_faces, 6, SEED)[0].indices[:, :4]
    edges = np.stack([genuine[:, [0, 0, 0]], genuine[:, 1:]], axis=2).reshape(-1, 2).astype(np.int64)

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
class _KnownScores:
    """Scores that take no time: the given connectivity, and whether an edge joins one identity."""

    directed: np.ndarray
    labels_true: np.ndarray

    def connectivity(self, first_row: int = 0) -> np.ndarray:
        return self.directed[first_row:]

    def edge_probability(self, edges: np.ndarray) -> np.ndarray:
        return (self.labels_true[edges[:, 0]] == self.labels_true[edges[:, 1]]).astype(np.float32)


def _graph_to_labels(num_faces: int, k: int, rule: str) -> Callable[[], dict[str, float]]:
    graph, connectivity, labels_true = identity_graph(num_faces, k, SEED)
    scores = _KnownScores(connectivity, labels_true)
    cluster = build(compose_config("eval", [f"clustering={rule}"]).clustering)
    width = FEATURE_DIM if cluster.second_pass else 0  # without a second pass, features are not read
    gallery = Gallery("synthetic", identity_features(labels_true, width, SEED), graph)

    def job() -> dict[str, float]:
        clustering = cluster(gallery, scores)
        table = Contingency.of(labels_true, clustering.labels)
        edges = len(clustering.details.edges_density) + len(clustering.details.edges_similar)
        return {"edges per face": edges / num_faces, "pairwise F": pairwise(table).f_score}

    return job
