"""Pages in a single file that open offline: scores, figures and doubtful decisions of an evaluation."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from lcde.clustering.components import connected_labels
from lcde.data.gallery import Gallery
from lcde.evaluation.output import by_part, part_title, percent
from lcde.evaluation.published import measured_rows, with_published
from lcde.evaluation.results import Result
from lcde.files import write_text
from lcde.methods.method import Clustering
from lcde.report import plots

EDGES = 10  # doubtful decisions of each kind
CLUSTERS, FACES = 6, 12  # clusters of each kind that are shown, and faces of each
SIDE = 96  # pixels of a thumbnail's longer side


@dataclass(frozen=True)
class PartReport:
    """What the page shows of one part beside its scores; small, so the gallery itself need not stay in memory.

    Attributes
    ----------
    figures : dict of str to Figure
        By kind: "cluster_sizes" and, where identities are known, "edges".
    decisions : str
        HTML: the most doubtful merges and splits, and clusters where there are images; empty where there is nothing.
    """

    figures: dict[str, Figure]
    decisions: str = ""


def report_part(gallery: Gallery, clustering: Clustering) -> PartReport:
    """Draw the figures and collect the doubtful decisions of one gallery; unreadable images are left blank."""
    figures = {"cluster_sizes": plots.cluster_sizes(clustering.labels, gallery.labels_true)}
    if gallery.labels_true is not None and gallery.graph.k > 1:
        figures["edges"] = plots.edge_separation(gallery, clustering)
    merges, sides = doubtful_merges(clustering)
    values = {"gallery": gallery, "clustering": clustering, "sizes": np.bincount(clustering.labels)}
    values |= {"merges": merges[:EDGES], "sides": sides.tolist(), "splits": doubtful_splits(clustering)[:EDGES]}
    values |= {"clusters": _examples(gallery, clustering, merges), "max_faces": FACES}
    return PartReport(figures, TEMPLATES.get_template("decisions.html.j2").render(values).strip())


def write_report(
    folder: Path, results: Sequence[Result], parts: Mapping[str, PartReport], more_figures: Mapping[str, Figure] = {}
) -> None:
    """Write ``figures/*.png`` and the page ``report.html`` into ``folder``.

    Parameters
    ----------
    folder : Path
    results : sequence of Result
        All methods on all parts.
    parts : mapping of str to PartReport
        By part's name, what to show of some of those parts or all.
    more_figures : mapping of str to Figure
        Figures that belong to no single part, by file name.
    """
    figures = {**method_figures(results), **more_figures}
    of_parts = {f"{name}_{kind}": figure for name, part in parts.items() for kind, figure in part.figures.items()}
    files = plots.save_figures(figures | of_parts, folder / "figures")
    values = {"parts": by_part(results), "reports": parts, "figures": figures, "files": files, "title": part_title}
    write_page(folder / "report.html", "html.html.j2", values)


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> None:
    """Fill ``template`` of this folder with ``values``, which are escaped, and write it to ``path``."""
    write_text(path, TEMPLATES.get_template(template).render(values))


def method_figures(results: Sequence[Result]) -> dict[str, Figure]:
    """Bars of all methods that have scores, and with published ones on the parts of public benchmarks."""
    ordered = [result for of_part in by_part(results).values() for result in of_part]
    titled = [replace(result, part=part_title(result.part, result.held_out)) for result in ordered]
    rows = {"methods": measured_rows(titled), "published": with_published(ordered)}
    return {name: plots.method_comparison(of_figure) for name, of_figure in rows.items() if of_figure}


def doubtful_merges(clustering: Clustering) -> tuple[np.ndarray, np.ndarray]:
    """Accepted density edges, the most doubtful first.

    Doubt is (1 - probability) times the faces of the smaller side. The two sides of an edge are the faces whose
    density edges lead through it, and the rest of the cluster. Edges whose ends similar edges join anyway are left out.

    Returns
    -------
    positions : (E,) int64
        Rows of ``edges_density``; none where the method has no densities or no edge probabilities.
    sides : (E, 2) int64
        Faces of the two sides.
    """
    edges, probability = clustering.details.edges_density, clustering.details.edge_probability
    density, similar = clustering.details.density, clustering.details.edges_similar
    if density is None or edges is None or probability is None:
        return np.empty(0, dtype=np.int64), np.empty((0, 2), dtype=np.int64)
    refused = probability <= (clustering.details.edge_threshold or 0.0)  # edges that were not asked about have NaN
    needed = accepted = np.equal(*clustering.labels[edges].T) & ~refused
    if similar is not None:
        similar = similar[np.equal(*clustering.labels[similar].T)]
        needed = accepted & np.not_equal(*connected_labels(similar, len(clustering.labels))[edges].T)
    behind, kept = [1] * len(clustering.labels), edges[accepted]
    for face, denser in kept[np.argsort(density[kept[:, 0]])].tolist():
        behind[denser] += behind[face]
    merges = np.flatnonzero(needed & ~np.isnan(probability))
    faces = edges[merges, 0]
    first, sizes = np.array(behind)[faces], np.bincount(clustering.labels)[clustering.labels[faces]]
    sides = np.stack([first, sizes - first], axis=1)
    order = np.argsort(-(1 - probability[merges]) * sides.min(axis=1), kind="stable")
    return merges[order], sides[order]


def doubtful_splits(clustering: Clustering) -> np.ndarray:
    """Density edges between two clusters, most probable first: rows of ``edges_density`` (E,) int64."""
    edges, probability = clustering.details.edges_density, clustering.details.edge_probability
    if edges is None or probability is None:
        return np.empty(0, dtype=np.int64)
    between = np.flatnonzero(np.not_equal(*clustering.labels[edges].T) & ~np.isnan(probability))
    return between[np.argsort(-probability[between], kind="stable")]


def _examples(gallery: Gallery, clustering: Clustering, merges: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """Clusters to show, by the kind of their choice; ``merges`` are those of `doubtful_merges`."""
    labels, density, sizes = clustering.labels, clustering.details.density, np.bincount(clustering.labels)
    edges = clustering.details.edges_density
    merged = merges if edges is None else labels[edges[merges, 0]]
    chosen = {
        "Largest clusters": np.argsort(-sizes, kind="stable"),
        "Most doubtful clusters": merged[np.sort(np.unique(merged, return_index=True)[1])],
        "Random clusters": np.random.default_rng(0).permutation(np.flatnonzero(sizes > 1)),
    }

    def describe(number: int) -> dict[str, Any]:
        faces = np.flatnonzero(labels == number)
        if density is not None:
            faces = faces[np.argsort(-density[faces], kind="stable")]
        identity = np.zeros_like(faces) if gallery.labels_true is None else gallery.labels_true[faces]
        counts = np.bincount(identity)
        shown = np.linspace(0, len(faces) - 1, min(len(faces), FACES)).astype(int)
        odd = identity[shown] != counts.argmax()
        return {"number": number, "identities": np.count_nonzero(counts), "faces": faces[shown], "odd": odd}

    return {kind: [describe(number) for number in numbers[:CLUSTERS]] for kind, numbers in chosen.items()}


def _thumbnail(path: Path) -> str | None:
    """A small JPEG of the image at ``path`` as a data URI, None where it cannot be read."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (SIDE, SIDE))  # a large JPEG is decoded small
            small = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # Pillow raises errors of many kinds on damaged files
        return None
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=80)
    return _data_uri("jpeg", file.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


LOADER = FileSystemLoader(Path(__file__).parent)
TEMPLATES = Environment(autoescape=True, loader=LOADER, trim_blocks=True, undefined=StrictUndefined)
TEMPLATES.filters |= {"number": "{:,}".format, "percent": percent, "thumbnail": _thumbnail}
TEMPLATES.filters["png"] = lambda file: _data_uri("png", file.read_bytes())
