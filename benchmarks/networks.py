"""Both networks at the published sizes over growing graphs: seconds, and the share of the device's peak they reach.

The peak is that of a matrix product, in the same process and precision.
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.graphs import identity_features, identity_graph
from benchmarks.measure import Case, Options, Run, peak_memory_mb
from lcde.configuration import build, compose_config
from lcde.data.gallery import Gallery

SEED = 0
FEATURE_DIM, K = 256, 80  # as on MS1M
CPU_SHARE = 100  # a CPU takes a hundredth of the sizes, which are meant for what follows the networks
LEAST = 5  # times K, the faces of the smallest graph
COUNTED = 256  # faces, or edges, whose operations are counted
SIDE = {"cpu": 4_096, "cuda": 16_384}  # of the matrices that give the peak
PRODUCTS = 5  # of them, of which the fastest counts


def cases(options: Options) -> list[Case]:
    """Connectivity of each face to its neighbours, and the probability of the edge to the nearest one, of N faces."""
    share = 1 if torch.cuda.is_available() else CPU_SHARE
    precisions = {"float32": "float32", "fastest precision": "auto"}
    return [
        Case("networks", what, size, {by: partial(prepare_scores, what, size, precisions[by]) for by in precisions})
        for what in ("connectivity", "edge probability")
        for size in (max(size // share, LEAST * K) for size in options.sizes)
    ]


def prepare_scores(what: str, num_faces: int, precision: str) -> Callable[[], Run]:
    """A job that scores the faces, or the edges to the nearest neighbours, of ``num_faces`` by untrained networks."""
    graph, _, labels = identity_graph(num_faces, K, SEED)
    gallery = Gallery("synthetic", identity_features(labels, FEATURE_DIM, SEED), graph)
    torch.manual_seed(SEED)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(compose_config("train", []).model, feature_dim=FEATURE_DIM, k=K).to(device)
    scores = model.bind(gallery, precision, False, None)
    edges = graph.indices[:, :2].astype(np.int64)

    def score(first: int) -> None:
        scores.connectivity(first) if what == "connectivity" else scores.edge_probability(edges[first:])

    counted = min(COUNTED, num_faces)
    with FlopCounterMode(display=False) as counter:
        score(num_faces - counted)
    operations = counter.get_total_flops() / counted * num_faces
    peak = peak_rate(scores.features.dtype, device)

    def job() -> Run:
        start = time.perf_counter()
        score(0)  # ends with a copy to the CPU, so that a GPU has finished
        seconds = time.perf_counter() - start
        rate = operations / seconds
        return Run(seconds, peak_memory_mb(), {"TFLOP/s": rate / 1e12, "of the peak": rate / peak})

    return job


def peak_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the product of two square matrices."""
    side = SIDE[device.type]
    matrix = torch.randn(side, side, device=device).to(dtype)
    seconds = []
    for _ in range(1 + PRODUCTS):  # the first one warms up
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds[1:])
