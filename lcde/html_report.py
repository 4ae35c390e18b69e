"""One page that shows a whole evaluation, in a single file that opens offline: scores, figures, doubtful decisions."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from lcde.clustering.components import connected_labels
from lcde.clustering.edges import select_edges
from lcde.clustering.pipeline import Clustering
from lcde.data.formats import write_atomically
from lcde.data.part import Part
from lcde.evaluation import Result
from lcde.metrics import Contingency, pairwise
from lcde.plots import PALETTE, cluster_sizes, density_correctness, edge_separation

CURVE_FACES = 200_000  # beyond, clustering 15 times more for one curve takes too long
EDGES = 10  # doubtful decisions of each kind
CLUSTERS, FACES = 6, 12  # clusters of each kind that are shown, and faces of each
SIDE = 96  # pixels of a thumbnail's longer side
DPI = 110
CAPTIONS = {
    "methods": "Pairwise F-scores weigh an identity by its pairs of faces, BCubed F-scores by its faces.",
    "training": "After the last fall of the validation losses, the networks learn the training faces by heart.",
    "published": "Beside the methods measured here, those published for the same faces.",
    "cluster_sizes": "The line starts at the number of clusters and ends at the size of the largest.",
    "edges": "All edges of the kNN graph, on a logarithmic axis; where the areas overlap, identities can be confused.",
    "density": "Accepting fewer density edges than are correct splits identities, accepting more merges them.",
    "threshold": "What other similarity thresholds would give, with the same density edges; the dashed line is in use.",
}


@dataclass(frozen=True)
class PartReport:
    """What the page shows of one part beside its scores: small, so that the part itself can be let go of.

    figures:    by kind, "cluster_sizes" and, with identities, "edges", "density", "threshold"
    decisions:  what the template shows of edges and clusters
    """

    figures: dict[str, Figure]
    decisions: dict[str, Any]


def report_part(part: Part, clustering: Clustering) -> PartReport:
    """Look at the decisions on ``part``; an image that cannot be read is left blank."""
    figures = {"cluster_sizes": cluster_sizes(clustering.labels, part.labels_true)}
    if part.labels_true is not None and part.k > 1:
        figures["edges"] = edge_separation(part, clustering)
    if part.labels_true is not None and len(clustering.edges_density):
        figures["density"] = density_correctness(part, clustering)
        if len(part) <= CURVE_FACES:
            figures["threshold"] = threshold_curve(part, clustering)
    return PartReport(figures, _decisions(part, clustering))


def write_report(
    path: Path, results: Sequence[Result], parts: Mapping[str, PartReport], figures: Mapping[str, Figure]
) -> None:
    """Write the page to ``path``.

    results:  all methods on all parts, the main method's first for each part
    parts:    by part's name, what to show of some of those parts, or all
    figures:  those of no single part, by name
    """
    shown = {name: _scores(name, results) for name in dict.fromkeys(result.part for result in results)}
    for name, part in parts.items():
        shown[name] |= {"figures": [_shown(*item) for item in part.figures.items()], **part.decisions}
    environment = Environment(
        autoescape=True, loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"number": "{:,}".format, "percent": lambda share, digits=2: f"{100 * share:.{digits}f}"}
    general = [_shown(*item) for item in figures.items()]
    page = environment.get_template("html_report.html.j2").render(
        parts=shown, figures=general, dpi=DPI, max_faces=FACES
    )
    write_atomically(path, lambda file: file.write(page.encode()))


def threshold_curve(part: Part, clustering: Clustering) -> Figure:
    """Pairwise scores of ``part``, whose ``labels_true`` must be known, against the similarity threshold τ.

    Only the similar edges change with τ; density edges stay where `Clustering.kept`, and clusters that second opinions
    parted do not join.
    """
    kept = clustering.edges_density[clustering.kept]
    used = clustering.similarity_threshold
    thresholds = [threshold for threshold in used + 0.03 * np.arange(-7, 8) if threshold >= 0]
    graph = part.indices, part.similarities, clustering.connectivity, clustering.density
    rule, scores = clustering.centroid_rule, []
    apart = np.not_equal(*clustering.labels[clustering.edges_parted].T)  # not together again by their centroids
    parted = _clusters_of(clustering.edges_parted[apart], clustering.labels)
    everybody = np.arange(len(part))  # clusters of one face each, so that no edge is inside one
    candidates = None if rule is None else rule.edges(everybody, part.indices, part.similarities)
    for threshold in thresholds:
        similar = select_edges(*graph, threshold)[1]
        similar = similar[~np.isin(_clusters_of(similar, clustering.labels), parted)]
        labels = connected_labels(np.concatenate([kept, similar]), len(part))
        if rule is not None:
            labels = rule.merge(labels, part.features, candidates)
        scores.append(pairwise(Contingency.of(part.labels_true, labels)))

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    lines = (("precision", "precision", "-o"), ("recall", "recall", "-s"), ("f_score", "F-score", "-^"))
    for (measure, label, style), color in zip(lines, PALETTE, strict=False):
        values = [100 * getattr(score, measure) for score in scores]
        axes.plot(thresholds, values, style, color=color, markersize=4, label=label)
    axes.axvline(used, color=PALETTE[-1], linestyle="--", label=f"τ = {used:.2f}")
    axes.set(xlabel="similarity threshold τ", ylabel="pairwise score (%)", axisbelow=True)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{part.name}: τ trades recall for precision", weight="bold")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _clusters_of(edges: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which two clusters of ``labels`` (N,) each of ``edges`` (M, 2) leads between, in either direction: (M,) int64."""
    clusters = np.sort(labels[edges], axis=1)
    return clusters[:, 0] << 32 | clusters[:, 1]


def doubtful_merges(clustering: Clustering) -> tuple[np.ndarray, np.ndarray]:
    """Kept density edges, the most doubtful first: positions in ``edges_density`` (E,) int64, and their sides (E, 2).

    Doubt is 1 - probability times the faces of the smaller side. The sides are the faces whose density edges lead
    through this one, and the rest of the cluster; similar edges may join them too, but edges whose ends are joined by
    similar edges alone are left out: nothing hangs on them.
    """
    similar = clustering.edges_similar
    similar = similar[np.equal(*clustering.labels[similar].T)]
    needed = np.not_equal(*connected_labels(similar, len(clustering.labels))[clustering.edges_density].T)
    behind = [1] * len(clustering.labels)
    edges = clustering.edges_density[clustering.kept]
    for face, denser in edges[np.argsort(clustering.density[edges[:, 0]])].tolist():
        behind[denser] += behind[face]
    merges = np.flatnonzero(needed & clustering.kept & ~np.isnan(clustering.edge_probability))
    faces = clustering.edges_density[merges, 0]
    first, sizes = np.array(behind)[faces], np.bincount(clustering.labels)[clustering.labels[faces]]
    sides = np.stack([first, sizes - first], axis=1)
    order = np.argsort(-(1 - clustering.edge_probability[merges]) * sides.min(axis=1), kind="stable")
    return merges[order], sides[order]


def doubtful_splits(clustering: Clustering) -> np.ndarray:
    """Density edges between two clusters that PCENet judged, most probable first: positions in ``edges_density``."""
    first, second = clustering.labels[clustering.edges_density].T
    dropped = np.flatnonzero((first != second) & ~np.isnan(clustering.edge_probability))
    return dropped[np.argsort(-clustering.edge_probability[dropped], kind="stable")]


def _scores(part: str, results: Sequence[Result]) -> dict[str, Any]:
    """What the template shows of every part; a `PartReport` adds to it."""
    own = [result for result in results if result.part == part]
    none: dict[str, Any] = {"figures": [], "merges": [], "splits": [], "clusters": {}}
    return {"results": own, "sizes": np.bincount(own[0].labels), **none}


def _decisions(part: Part, clustering: Clustering) -> dict[str, Any]:
    """What the template shows of one part's edges and clusters."""
    images = part.images
    labels, labels_true, sizes = clustering.labels, part.labels_true, np.bincount(clustering.labels)

    def face(number: int, odd: bool = False) -> dict[str, Any]:
        return {"number": number, "odd": odd, "image": None if images is None else _thumbnail(images[number])}

    def edge(position: int, kept: bool, clusters: dict[int, list[int]]) -> dict[str, Any]:
        first, second = clustering.edges_density[position]
        return {
            "faces": [face(first), face(second)],
            "probability": clustering.edge_probability[position],
            "similarity": part.features[first] @ part.features[second],
            "clusters": clusters,
            "right": labels_true is not None and (labels_true[first] == labels_true[second]) == kept,
        }

    def cluster(number: int) -> dict[str, Any]:
        faces = np.flatnonzero(labels == number)
        faces = faces[np.argsort(-clustering.density[faces], kind="stable")]
        identity = np.zeros_like(faces) if labels_true is None else labels_true[faces]
        counts = np.bincount(identity)
        chosen = np.linspace(0, len(faces) - 1, min(len(faces), FACES)).astype(int)
        shown = [face(faces[i], odd=identity[i] != counts.argmax()) for i in chosen]
        return {"number": number, "size": len(faces), "identities": np.count_nonzero(counts), "faces": shown}

    merges, sides = doubtful_merges(clustering)
    splits = doubtful_splits(clustering)[:EDGES]
    merged = labels[clustering.edges_density[merges, 0]]
    examples = {
        "Largest clusters": np.argsort(-sizes, kind="stable")[:CLUSTERS],
        "Most doubtful clusters": merged[np.sort(np.unique(merged, return_index=True)[1])[:CLUSTERS]],
        "Random clusters": np.random.default_rng(0).permutation(np.flatnonzero(sizes > 1))[:CLUSTERS],
    }
    return {
        "labelled": labels_true is not None,
        "pictured": images is not None,
        "merges": [
            edge(position, True, {labels[clustering.edges_density[position, 0]]: counts})
            for position, counts in zip(merges[:EDGES], sides[:EDGES].tolist(), strict=True)
        ],
        "splits": [
            edge(position, False, {label: [sizes[label]] for label in labels[clustering.edges_density[position]]})
            for position in splits
        ],
        "clusters": {} if images is None else {title: list(map(cluster, ids)) for title, ids in examples.items()},
    }


def _shown(kind: str, figure: Figure) -> dict[str, Any]:
    image = _data_uri("png", lambda file: figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None}))
    return {"caption": CAPTIONS.get(kind, kind.replace("_", " ")), "image": image, "inches": figure.get_figwidth()}


def _thumbnail(path: Path) -> str | None:
    """A small JPEG of the image at ``path``, None where it cannot be read."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (SIDE, SIDE))  # a large JPEG is decoded small
            small = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # Pillow raises errors of many kinds on damaged files
        return None
    small.thumbnail((SIDE, SIDE))
    return _data_uri("jpeg", lambda file: small.save(file, format="JPEG", quality=80))


def _data_uri(kind: str, save: Callable[[io.BytesIO], object]) -> str:
    file = io.BytesIO()
    save(file)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
