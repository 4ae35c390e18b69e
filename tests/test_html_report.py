import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lcde import html_report
from lcde.clustering.components import connected_labels
from lcde.clustering.edges import select_edges
from lcde.clustering.pipeline import Clustering, LCDEClustering
from lcde.evaluation import Result
from lcde.html_report import PartReport, doubtful_merges, doubtful_splits, report_part, threshold_curve, write_report
from lcde.metrics import Contingency, bcubed, nmi, pairwise
from lcde.report import method_figures

DATA_URI = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/=]+")
VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """Text and links of a page, whose every tag must be closed."""

    def __init__(self, path):
        super().__init__()
        self.html = path.read_text()
        self.text, self.resources, self.headings, self.open = "", [], [], []
        self.feed(self.html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.resources += [(tag, value) for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th", "div"):
            self.text += " "

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)

    @property
    def words(self):
        return " ".join(self.text.split())

    def images(self):
        return [value for tag, value in self.resources if tag == "img"]


def size_of(uri):
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        return image.size


class Probabilities:
    """Connectivity is the similarity; the probability of an edge rises with it."""

    def __init__(self, part):
        self.part = part

    def connectivity(self):
        return self.part.similarities.clip(0, 1)

    def edge_probability(self, edges):
        return np.prod(self.part.features[edges], axis=1).sum(axis=1).clip(0, 1) ** 4


def cluster(part, **settings):
    return LCDEClustering(**settings)(part.features, part.indices, part.similarities, Probabilities(part))


def result_of(part, labels, method="LCDE", noise=None):
    scores = (None, None, None)
    if part.labels_true is not None:
        table = Contingency.of(part.labels_true, labels)
        scores = pairwise(table), bcubed(table), nmi(table)
    return Result(part.name, method, labels, noise, *scores, {"clustering": 1.0, "total": 1.25}, 100.0)


@pytest.fixture(scope="module")
def part(make_part):
    return replace(make_part(0, num_faces=120, k=8), name="faces")


@pytest.fixture
def pictures(tmp_path, part):
    """An image of each face, but the last 40 files do not exist and the 10 before are damaged."""
    paths = [tmp_path / f"{face}.png" for face in range(len(part))]
    for face, path in enumerate(paths[:-40]):
        Image.new("RGB", (300, 150), (face, 90, 90)).save(path)
    for path in paths[-50:-40]:
        path.write_bytes(path.read_bytes()[:60])
    return paths


@pytest.fixture
def write(tmp_path):
    def write(parts, method="LCDE", **settings):
        pairs = [(part, cluster(part, **settings)) for part in parts]
        results = [result_of(part, clustering.labels, method) for part, clustering in pairs]
        results += [result_of(part, np.arange(len(part)), "singletons") for part in parts]
        shown = {part.name: report_part(part, clustering) for part, clustering in pairs}
        write_report(tmp_path / "run" / "report.html", results, shown, method_figures(results))
        return Page(tmp_path / "run" / "report.html")

    return write


def test_page_shows_scores_figures_and_doubts(write, part):
    page = write([part])
    result = result_of(part, cluster(part).labels)
    sizes = np.bincount(result.labels)
    assert f"LCDE puts 120 faces into {result.num_clusters} clusters" in page.words
    assert f"a pairwise F-score of {100 * result.pairwise.f_score:.1f}%" in page.words
    assert f"the largest has {sizes.max()} faces, and {100 * (sizes == 1).sum() / 120:.1f}% of the faces" in page.words
    for value in (*result.pairwise.as_dict().values(), *result.bcubed.as_dict().values(), result.nmi):
        assert f"{100 * value:.2f}" in page.words
    assert page.headings == ["Face clustering", "Methods", "faces", "Most doubtful merges", "Most doubtful splits"]
    assert len(page.images()) == 5, "methods, sizes, edges, density and the threshold curve"
    assert page.html.index("<table") < page.html.index(page.images()[0])


def test_best_f_score_is_bold(write, part):
    page = write([part])
    result = result_of(part, cluster(part).labels)
    bold = [f"<b>{100 * score.f_score:.2f}</b>" for score in (result.pairwise, result.bcubed)]
    assert re.findall("<b>.*?</b>", page.html) == bold, "singletons have lower F-scores"


def test_names_are_escaped(write, part):
    page = write([replace(part, name="<i>&me")], method="<script>")
    assert "<i>&me" in page.text
    assert "<script>" in page.text
    assert "<script" not in page.html
    assert "<i>" not in page.html


def test_without_labels_no_scores(write, part):
    page = write([replace(part, labels_true=None, images=["nowhere.png"] * len(part))])
    for word in ("F-score", "precision", "recall", "BCubed", "NMI", "right", "wrong", "decision", "identit"):
        assert word not in page.words
    assert len(page.images()) == 1, "cluster sizes"
    assert {"Most doubtful merges", "Most doubtful splits", "Largest clusters"} <= set(page.headings)


def test_images_become_thumbnails_and_unreadable_ones_are_left_blank(write, part, pictures):
    page = write([replace(part, images=pictures)])
    assert page.headings[-3:] == ["Largest clusters", "Most doubtful clusters", "Random clusters"]
    faces = [int(face) for face in re.findall(r'alt="face (\d+)"', page.html)]
    blank = [int(face) for face in re.findall(r"The image of face (\d+) cannot be read", page.html)]
    assert faces
    assert max(faces) < 70
    assert blank
    assert min(blank) >= 70
    (jpeg, *_) = [uri for uri in page.images() if uri.startswith("data:image/jpeg")]
    assert size_of(jpeg) == (96, 48)


def test_cluster_gallery_shows_faces_by_density_and_frames_other_identities(write, part, pictures):
    clustering = cluster(part)
    largest = np.flatnonzero(clustering.labels == np.bincount(clustering.labels).argmax())
    by_density = largest[np.argsort(-clustering.density[largest], kind="stable")]
    labels_true = part.labels_true.copy()
    labels_true[largest] = 3
    labels_true[by_density[-1]] = 4
    page = write([replace(part, labels_true=labels_true, images=pictures)])
    gallery = re.search(r'<div class="gallery">.*?</div>', page.html, re.DOTALL)[0]
    numbers = [int(face) for face in re.findall(r'title="(?:The image of )?face (\d+)', gallery)]
    assert len(largest) > len(numbers) == html_report.FACES
    assert (numbers[0], numbers[-1]) == (by_density[0], by_density[-1])
    assert numbers == [face for face in by_density if face in numbers]
    framed = re.findall(r'<(?:img|span)[^>]*class="(?:blank )?odd"[^>]*>', gallery)
    assert len(framed) == 1
    assert f"face {by_density[-1]}" in framed[0]
    assert f"{len(largest)} faces, 2 identities" in page.words


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "I;16"])
def test_thumbnails_stand_upright(tmp_path, mode):
    path = tmp_path / ("picture.jpg" if mode in ("RGB", "L", "CMYK") else "picture.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation: a quarter turn to the right
    Image.new(mode, (800, 400)).save(path, exif=exif)
    assert size_of(html_report._thumbnail(path)) == (48, 96)


def test_page_needs_nothing_else(write, part, pictures):
    page = write([replace(part, images=pictures)])
    rest = DATA_URI.sub("", page.html)
    for word in ("http", "//", "url(", "@import", "<script", "srcset"):
        assert word not in rest
    for tag, value in page.resources:
        assert DATA_URI.fullmatch(value) or (tag, value) == ("link", "data:,") or value.startswith("#part-")


def test_figures_stand_with_their_part(write, tmp_path, part):
    longer = replace(part, name="faces_b", labels_true=None)
    shown = {
        name: PartReport({kind: Figure(figsize=(1, 1)) for kind in kinds}, {})
        for name, kinds in {"faces": ("cluster_sizes", "x"), "faces_b": ("extra",)}.items()
    }
    labels = cluster(part).labels
    results = [result_of(p, labels) for p in (part, longer)]
    write_report(tmp_path / "a.html", results, shown, {"methods": Figure(figsize=(1, 1))})
    page = Page(tmp_path / "a.html")
    assert page.headings == ["Face clustering", "Methods", "faces", "faces_b"]
    captions = [html_report.CAPTIONS["methods"], html_report.CAPTIONS["cluster_sizes"], "x", "extra"]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page.html) == captions
    assert page.html.index(captions[0]) < page.html.index("<h2>faces</h2>") < page.html.index(captions[1])
    assert page.html.index("<figcaption>x<") < page.html.index("<h2>faces_b</h2>") < page.html.index(">extra<")


def test_two_parts_have_a_table_and_a_section_each(write, part, pictures):
    other = replace(part, name="other", labels_true=None)
    page = write([replace(part, images=pictures), other])
    assert re.findall(r"<caption>(.*?)</caption>", page.html) == ["faces", "other"]
    links = [value for tag, value in page.resources if tag == "a"]
    assert links == ["#part-1", "#part-2"]
    assert re.findall(r'id="(.*?)"', page.html) == ["part-1", "part-2"]
    section = page.html.partition('id="part-2"')[2]
    assert "Most doubtful merges" in section
    assert "Largest clusters" not in section, "there are no images of this part"


def test_one_cluster_and_noise(tmp_path, part):
    labels, noise = np.zeros(len(part), dtype=np.int64), np.arange(len(part)) < 2
    result = result_of(part, labels, noise=noise)
    write_report(tmp_path / "a.html", [result], {}, {})
    page = Page(tmp_path / "a.html")
    assert "into 1 cluster, with" in page.words
    assert "2 faces of small or sparse clusters count as noise" in page.words
    assert page.headings == ["Face clustering", "Methods"]


def test_clustering_without_density_edges(tmp_path, part, pictures):
    clustering = cluster(part)
    none = np.empty((0, 2), dtype=np.int64)
    clustering = replace(clustering, edges_density=none, edge_probability=np.empty(0, dtype=np.float32))
    results = [result_of(part, clustering.labels, "unsupervised")]
    write_report(tmp_path / "a.html", results, {"faces": report_part(replace(part, images=pictures), clustering)}, {})
    page = Page(tmp_path / "a.html")
    assert page.headings == ["Face clustering", "Methods", "faces", "Largest clusters", "Random clusters"]
    assert sum(uri.startswith("data:image/png") for uri in page.images()) == 2, "sizes and edges, no threshold curve"


def test_threshold_curve_is_left_out_of_large_parts(write, part, monkeypatch):
    monkeypatch.setattr(html_report, "CURVE_FACES", len(part) - 1)
    assert len(write([part]).images()) == 4


@pytest.mark.parametrize("edge_threshold", [0.5, 0.8])
def test_threshold_curve_clusters_anew_at_each_threshold(part, edge_threshold):
    used = cluster(part).similarity_threshold
    all_asked = cluster(part, edge_threshold=edge_threshold, similarity_threshold=2.0)
    (axes,) = threshold_curve(part, replace(all_asked, similarity_threshold=used)).axes
    precision, recall, f_score, line = axes.lines
    thresholds = precision.get_xdata()
    assert line.get_xdata()[0] == thresholds[7] == used
    assert len(thresholds) == 15
    for position, threshold in enumerate(thresholds):
        labels = cluster(part, edge_threshold=edge_threshold, similarity_threshold=threshold).labels
        score = pairwise(Contingency.of(part.labels_true, labels))
        values = [100 * score.precision, 100 * score.recall, 100 * score.f_score]
        assert [line.get_ydata()[position] for line in (precision, recall, f_score)] == pytest.approx(values)
    assert np.ptp(recall.get_ydata()) > 0


def test_threshold_curve_leaves_apart_what_second_opinions_parted(part):
    clustering = cluster(part, similarity_threshold=0.9)
    lowest = 0.9 - 7 * 0.03
    graph = part.indices, part.similarities, clustering.connectivity, clustering.density
    similar = select_edges(*graph, lowest)[1]
    joining = similar[np.not_equal(*clustering.labels[similar].T)]
    assert len(joining)
    (axes,) = threshold_curve(part, replace(clustering, edges_parted=joining)).axes
    for line in axes.lines[:3]:
        assert line.get_ydata()[0] == line.get_ydata()[7]
    (axes,) = threshold_curve(part, clustering).axes
    assert axes.lines[1].get_ydata()[0] > axes.lines[1].get_ydata()[7]


def test_threshold_curve_has_no_negative_thresholds(part):
    (axes,) = threshold_curve(part, cluster(part, similarity_threshold=0.1)).axes
    assert axes.lines[0].get_xdata() == pytest.approx(0.1 + 0.03 * np.arange(-3, 8))


def test_doubtful_merges_are_ranked_by_doubt_and_smaller_side(part):
    """Without similar edges, cutting an edge and looking gives the two sides."""
    clustering = cluster(part, similarity_threshold=2.0)
    positions, sides = doubtful_merges(clustering)
    kept = np.flatnonzero(clustering.edge_probability > 0.5)
    assert sorted(positions) == kept.tolist()
    doubt = []
    for position, counts in zip(positions, sides, strict=True):
        labels = connected_labels(clustering.edges_density[kept[kept != position]], len(part))
        ends = clustering.edges_density[position]
        assert counts.tolist() == np.bincount(labels)[labels[ends]].tolist()
        doubt.append((1 - clustering.edge_probability[position]) * counts.min())
    assert doubt == sorted(doubt, reverse=True)
    assert sides.min(axis=1).max() > 1


def hand_made():
    """Clusters 0, 1, 2, 3, 6 and 4, 5; similar edges join 2 to 3, whose density edge was dropped, and 6 to 3."""
    edges = np.array([[0, 1], [1, 2], [2, 3], [4, 5], [5, 3], [6, 3]])
    probability = np.array([0.75, 0.90625, 0.375, 0.625, 0.25, 0.5625], dtype=np.float32)
    labels = np.array([0, 0, 0, 0, 1, 1, 0])
    density, nothing = np.array([1, 2, 3, 4, 1.5, 2.5, 3.5]), np.zeros((7, 2), dtype=np.float32)
    return Clustering(
        labels, labels < 0, nothing, density, edges, probability, np.array([[2, 3], [3, 6]]), 0.5, 0.5, None, None
    )


def test_doubtful_merges_leave_out_what_similar_edges_join():
    positions, sides = doubtful_merges(hand_made())
    assert positions.tolist() == [3, 0, 1], "doubts 3/8 · 1, 1/4 · 1, 3/32 · 2"
    assert sides.tolist() == [[1, 1], [1, 4], [2, 3]]
    assert doubtful_merges(replace(hand_made(), edge_threshold=0.8))[0].tolist() == [1]


def test_doubtful_splits_lead_between_clusters():
    assert doubtful_splits(hand_made()).tolist() == [4]
    assert doubtful_splits(replace(hand_made(), edge_threshold=0.2)).tolist() == [4], "second opinions may part them"
    unasked = np.full(6, np.nan, dtype=np.float32)
    assert doubtful_splits(replace(hand_made(), edge_probability=unasked)).tolist() == []


def test_rows_say_whether_decisions_were_right(tmp_path, part):
    clustering = hand_made()
    labels_true = np.array([0, 0, 0, 1, 2, 3, 4])
    small = replace(part, features=part.features[:7], labels_true=labels_true)
    small = replace(small, indices=part.indices[:7, :2] % 7, similarities=part.similarities[:7, :2])
    write_report(
        tmp_path / "a.html", [result_of(small, clustering.labels)], {"faces": report_part(small, clustering)}, {}
    )
    words = Page(tmp_path / "a.html").words
    rows = re.findall(r"(\d) – (\d) . (right|wrong)", words)
    assert rows == [("4", "5", "wrong"), ("0", "1", "right"), ("1", "2", "right"), ("5", "3", "right")]
    similarities = [part.features[4] @ part.features[5], part.features[5] @ part.features[3]]
    assert f"4 – 5 ✗ wrong 0.625 {similarities[0]:.3f} 1 (1 + 1 faces) 0 – 1" in words
    assert f"5 – 3 ✓ right 0.250 {similarities[1]:.3f} 1 (2 faces) 0 (5 faces)" in words
