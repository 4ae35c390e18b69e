import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lcde.clustering.components import connected_labels
from lcde.data.gallery import KNNGraph
from lcde.methods.method import Clustering, Details
from lcde.report import html
from lcde.report.html import PartReport, doubtful_merges, doubtful_splits, method_figures, report_part, write_report

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


@pytest.fixture
def pictures(tmp_path, gallery):
    """An image of each face, but the last 40 files do not exist and the 10 before are damaged."""
    paths = [tmp_path / f"{face}.png" for face in range(len(gallery))]
    for face, path in enumerate(paths[:-40]):
        Image.new("RGB", (300, 150), (face, 90, 90)).save(path)
    for path in paths[-50:-40]:
        path.write_bytes(path.read_bytes()[:60])
    return paths


@pytest.fixture
def write(tmp_path, cluster, result_of):
    """Write the report of galleries, each with singletons as a baseline, and read it."""

    def write(galleries, method="mine", clustering=None, **settings):
        pairs = [(gallery, clustering or cluster(gallery, **settings)) for gallery in galleries]
        results = [result_of(gallery, Clustering(np.arange(len(gallery))), "LCDE", True) for gallery in galleries]
        results += [result_of(gallery, clustering, method) for gallery, clustering in pairs]
        shown = {gallery.name: report_part(gallery, clustering) for gallery, clustering in pairs}
        write_report(tmp_path / "run", results, shown)
        return Page(tmp_path / "run" / "report.html")

    return write


@pytest.mark.slow
def test_page_shows_scores_figures_and_doubts(write, gallery, cluster, result_of, tmp_path):
    page = write([gallery])
    result = result_of(gallery, cluster(gallery))
    sizes = np.bincount(result.clustering.labels)
    assert f"mine puts 120 faces into {result.num_clusters} clusters" in page.words
    assert f"a pairwise F-score of {100 * result.pairwise.f_score:.1f}%" in page.words
    assert f"the largest has {sizes.max()} faces, and {100 * (sizes == 1).sum() / 120:.1f}% of the faces" in page.words
    for value in (*result.pairwise.as_dict().values(), *result.bcubed.as_dict().values(), result.nmi):
        assert f"{100 * value:.2f}" in page.words
    assert page.headings == ["Face clustering", "Methods", "faces", "Most doubtful merges", "Most doubtful splits"]
    assert len(page.images()) == 3, "methods, sizes and edges"
    assert page.html.index("<table") < page.html.index(page.images()[0])
    files = {file.name for file in (tmp_path / "run" / "figures").iterdir()}
    assert files == {"methods.png", "faces_cluster_sizes.png", "faces_edges.png"}


@pytest.fixture
def write_table(tmp_path, monkeypatch):
    """Write a page of results without figures, which take most of the time, and read it."""
    monkeypatch.setattr(html, "method_figures", lambda results: {})

    def write_table(*results, parts=None):
        write_report(tmp_path, results, parts or {})
        return Page(tmp_path / "report.html")

    return write_table


def test_roles_come_from_the_result(write_table, gallery, cluster, result_of):
    """Neither the order nor a name makes a method the evaluated one, and there may be several."""
    singletons = Clustering(np.arange(len(gallery)))
    others = [result_of(gallery, singletons, "LCDE", baseline=True), result_of(gallery, singletons, "two")]
    page = write_table(*others, result_of(gallery, cluster(gallery), "one"))
    assert re.findall(r"(\w+) puts", page.words) == ["two", "one"]
    rows = re.findall(r"<tr( class=\"evaluated\")?><td>(\w+)</td>", page.html)
    assert [(name, bool(evaluated)) for evaluated, name in rows] == [("two", True), ("one", True), ("LCDE", False)]


def test_best_f_score_is_bold(write_table, gallery, cluster, result_of):
    result = result_of(gallery, cluster(gallery))
    page = write_table(result_of(gallery, Clustering(np.arange(len(gallery))), "single", baseline=True), result)
    bold = [f"<b>{100 * score.f_score:.2f}</b>" for score in (result.pairwise, result.bcubed)]
    assert re.findall("<b>.*?</b>", page.html) == bold, "singletons have lower F-scores"


def test_held_out_parts_are_marked_and_come_last(write_table, gallery, cluster, result_of):
    clustering = cluster(gallery)
    held_out = replace(gallery, name="chooses", held_out=True)
    page = write_table(result_of(held_out, clustering), result_of(gallery, clustering))
    assert re.findall(r"<caption>(.*?)</caption>", page.html) == ["faces", "chooses (held out)"]
    assert "scores on them are not results" in page.words
    named = replace(held_out, name="part0_held_out")
    assert "<caption>part0_held_out</caption>" in write_table(result_of(named, clustering)).html
    assert "held" not in write_table(result_of(gallery, clustering)).words.lower()


def test_names_are_escaped(write_table, gallery, cluster, result_of):
    clustering = cluster(gallery)
    evil = replace(gallery, name="<i>&me")
    shown = report_part(replace(evil, images=["<i>"] * len(evil)), clustering)
    page = write_table(result_of(evil, clustering, "<script>"), parts={evil.name: replace(shown, figures={})})
    assert "<i>&me" in page.text
    assert "<script>" in page.text
    assert "<script" not in page.html
    assert "<i>" not in page.html


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "&lt;b&gt;"]
)
def test_names_of_all_kinds_stay_text(name, write_table, gallery, cluster, result_of):
    clustering = cluster(gallery)
    part = name.replace("/", "")
    shown = {part: replace(report_part(replace(gallery, name=part), clustering), figures={})}
    baseline = result_of(replace(gallery, name=part), clustering, f"other {name}", baseline=True)
    page = write_table(result_of(replace(gallery, name=part), clustering, name), baseline, parts=shown)
    assert page.text.count(part) >= 3
    assert page.text.count(name) >= 3
    assert not page.images()
    assert "<script" not in page.html


@pytest.mark.slow
def test_without_labels_no_scores(write, gallery):
    page = write([replace(gallery, labels_true=None, images=["nowhere.png"] * len(gallery))])
    for word in ("F-score", "precision", "recall", "BCubed", "NMI", "right", "wrong", "decision", "identit"):
        assert word not in page.words
    assert len(page.images()) == 1, "cluster sizes"
    assert {"Most doubtful merges", "Most doubtful splits", "Largest clusters"} <= set(page.headings)


@pytest.mark.slow
def test_images_become_thumbnails_and_unreadable_ones_are_left_blank(write, gallery, pictures):
    page = write([replace(gallery, images=pictures)])
    assert page.headings[-3:] == ["Largest clusters", "Most doubtful clusters", "Random clusters"]
    faces = [int(face) for face in re.findall(r'alt="face (\d+)"', page.html)]
    blank = [int(face) for face in re.findall(r"The image of face (\d+) cannot be read", page.html)]
    assert faces
    assert max(faces) < 70
    assert blank
    assert min(blank) >= 70
    (jpeg, *_) = [uri for uri in page.images() if uri.startswith("data:image/jpeg")]
    assert size_of(jpeg) == (96, 48)
    rest = DATA_URI.sub("", page.html)
    for word in ("http", "//", "url(", "@import", "<script", "srcset"):
        assert word not in rest, "the page needs nothing else"
    for tag, value in page.resources:
        assert DATA_URI.fullmatch(value) or (tag, value) == ("link", "data:,") or value.startswith("#part-")


def test_cluster_examples_show_faces_by_density_and_frame_other_identities(
    write_table, gallery, cluster, result_of, pictures
):
    clustering = cluster(gallery)
    largest = np.flatnonzero(clustering.labels == np.bincount(clustering.labels).argmax())
    by_density = largest[np.argsort(-clustering.details.density[largest], kind="stable")]
    labels_true = gallery.labels_true.copy()
    labels_true[largest] = 3
    labels_true[by_density[-1]] = 4
    shown = report_part(replace(gallery, labels_true=labels_true, images=pictures), clustering)
    page = write_table(result_of(gallery, clustering), parts={"faces": replace(shown, figures={})})
    faces = re.search(r'<div class="gallery">.*?</div>', page.html, re.DOTALL)[0]
    numbers = [int(face) for face in re.findall(r'title="(?:The image of )?face (\d+)', faces)]
    assert len(largest) > len(numbers) == html.FACES
    assert (numbers[0], numbers[-1]) == (by_density[0], by_density[-1])
    assert numbers == [face for face in by_density if face in numbers]
    framed = re.findall(r'<(?:img|span)[^>]*class="(?:blank )?odd"[^>]*>', faces)
    assert len(framed) == 1
    assert f"face {by_density[-1]}" in framed[0]
    assert f"{len(largest)} faces, 2 identities" in page.words
    assert "From the densest face to the sparsest" in page.words


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "I;16"])
def test_thumbnails_stand_upright(tmp_path, mode):
    path = tmp_path / ("picture.jpg" if mode in ("RGB", "L", "CMYK") else "picture.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation: a quarter turn to the right
    Image.new(mode, (800, 400)).save(path, exif=exif)
    assert size_of(html._thumbnail(path)) == (48, 96)


def test_figures_stand_with_their_part(write_table, gallery, cluster, result_of, tmp_path):
    longer = replace(gallery, name="faces_b", labels_true=None)
    shown = {
        name: PartReport({kind: Figure(figsize=(1, 1)) for kind in kinds})
        for name, kinds in {"faces": ("cluster_sizes", "x"), "faces_b": ("extra_one",)}.items()
    }
    results = [result_of(each, cluster(gallery)) for each in (gallery, longer)]
    write_report(tmp_path, results, shown, {"training": Figure(figsize=(1, 1))})
    page = Page(tmp_path / "report.html")
    assert page.headings == ["Face clustering", "Methods", "faces", "faces_b"]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.html)
    assert captions[2:] == ["x", "extra one"]
    assert page.html.index(captions[0]) < page.html.index("<h2>faces</h2>") < page.html.index(captions[1])
    assert page.html.index("<figcaption>x<") < page.html.index("<h2>faces_b</h2>") < page.html.index(">extra one<")
    names = {"training.png", "faces_cluster_sizes.png", "faces_x.png", "faces_b_extra_one.png"}
    assert {file.name for file in (tmp_path / "figures").iterdir()} == names


@pytest.mark.slow
def test_two_parts_have_a_table_and_a_section_each(write, gallery, pictures):
    other = replace(gallery, name="other", labels_true=None)
    page = write([replace(gallery, images=pictures), other])
    assert re.findall(r"<caption>(.*?)</caption>", page.html) == ["faces", "other"]
    links = [value for tag, value in page.resources if tag == "a"]
    assert links == ["#part-1", "#part-2"]
    assert re.findall(r'id="(.*?)"', page.html) == ["part-1", "part-2"]
    section = page.html.partition('id="part-2"')[2]
    assert "Most doubtful merges" in section
    assert "Largest clusters" not in section, "there are no images of this part"


def test_one_cluster_and_noise(write_table, gallery, result_of):
    clustering = Clustering(np.zeros(len(gallery), dtype=np.int64), noise=np.arange(len(gallery)) < 2)
    page = write_table(result_of(gallery, clustering))
    assert "into 1 cluster, with" in page.words
    assert "2 faces of small or sparse clusters count as noise" in page.words
    assert page.headings == ["Face clustering", "Methods"]


@pytest.mark.parametrize("missing", ["all", "edge_probability", "edges_density", "density", "connectivity"])
def test_what_is_shown_follows_from_the_details(write_table, gallery, cluster, result_of, missing):
    clustering = cluster(gallery)
    details = Details() if missing == "all" else replace(clustering.details, **{missing: None})
    clustering = replace(clustering, details=details)
    shown = report_part(replace(gallery, images=["nowhere.png"] * len(gallery)), clustering)
    assert set(shown.figures) == {"cluster_sizes", "edges"}
    assert len(shown.figures["edges"].axes) == (1 if missing in ("all", "connectivity") else 2)
    page = write_table(result_of(gallery, clustering), parts={"faces": replace(shown, figures={})})
    headings = {
        "Most doubtful merges": missing == "connectivity",
        "Most doubtful splits": missing in ("connectivity", "density"),
        "Largest clusters": True,
        "Most doubtful clusters": missing == "connectivity",
        "Random clusters": True,
    }
    assert page.headings == ["Face clustering", "Methods", "faces", *(key for key, shown in headings.items() if shown)]


def test_methods_figure_has_published_scores_on_benchmarks(result_of, gallery):
    large = Clustering(np.zeros(18_171, dtype=np.int64))
    benchmark = replace(gallery, name="512", labels_true=np.zeros(18_171, dtype=np.int64))
    assert set(method_figures([result_of(benchmark, large)])) == {"methods", "published"}
    singletons = Clustering(np.arange(len(gallery)))
    assert set(method_figures([result_of(replace(gallery, name="part1_test"), singletons)])) == {"methods"}
    assert method_figures([result_of(replace(gallery, labels_true=None), singletons)]) == {}


def test_doubtful_merges_are_ranked_by_doubt_and_smaller_side(gallery, cluster):
    """Without similar edges, removing an edge and counting gives the two sides."""
    clustering = cluster(gallery, similarity_threshold=1.0)
    details = clustering.details
    positions, sides = doubtful_merges(clustering)
    kept = np.flatnonzero(details.edge_probability > 0.5)
    assert sorted(positions) == kept.tolist()
    doubt = []
    for position, counts in zip(positions, sides, strict=True):
        labels = connected_labels(details.edges_density[kept[kept != position]], len(gallery))
        ends = details.edges_density[position]
        assert counts.tolist() == np.bincount(labels)[labels[ends]].tolist()
        doubt.append((1 - details.edge_probability[position]) * counts.min())
    assert doubt == sorted(doubt, reverse=True)
    assert sides.min(axis=1).max() > 1


def hand_made(**changes):
    """Clusters 0, 1, 2, 3, 6 and 4, 5; similar edges join 2 to 3, whose density edge was dropped, and 6 to 3."""
    edges = np.array([[0, 1], [1, 2], [2, 3], [4, 5], [5, 3], [6, 3]])
    probability = np.array([0.75, 0.90625, 0.375, 0.625, 0.25, 0.5625], dtype=np.float32)
    density = np.array([1, 2, 3, 4, 1.5, 2.5, 3.5])
    details = Details(None, density, edges, probability, 0.5, np.array([[2, 3], [3, 6]]), 0.5)
    return Clustering(np.array([0, 0, 0, 0, 1, 1, 0]), details=replace(details, **changes))


def test_doubtful_merges_leave_out_what_similar_edges_join():
    positions, sides = doubtful_merges(hand_made())
    assert positions.tolist() == [3, 0, 1], "doubts 3/8 · 1, 1/4 · 1, 3/32 · 2"
    assert sides.tolist() == [[1, 1], [1, 4], [2, 3]]
    assert doubtful_merges(hand_made(edge_threshold=0.8))[0].tolist() == [1]
    assert 5 in doubtful_merges(hand_made(edges_similar=None))[0]


def test_edges_that_were_not_asked_about_join_without_doubt():
    probability = hand_made().details.edge_probability.copy()
    probability[1] = np.nan
    positions, sides = doubtful_merges(hand_made(edge_probability=probability))
    assert positions.tolist() == [3, 0]
    assert sides.tolist() == [[1, 1], [1, 4]]
    probability[0], probability[1] = np.nan, 0.90625
    positions, sides = doubtful_merges(hand_made(edge_probability=probability))
    assert positions.tolist() == [3, 1]
    assert sides.tolist() == [[1, 1], [2, 3]], "face 0 counts on the side of face 1"


def test_doubtful_splits_lead_between_clusters():
    assert doubtful_splits(hand_made()).tolist() == [4]
    assert doubtful_splits(hand_made(edge_threshold=0.2)).tolist() == [4], "a refinement may have split them"
    assert doubtful_splits(hand_made(edge_probability=np.full(6, np.nan, dtype=np.float32))).tolist() == []


def test_rows_say_whether_decisions_were_right(write_table, gallery, result_of):
    clustering = hand_made()
    graph = KNNGraph(gallery.graph.indices[:7, :2] % 7, gallery.graph.similarities[:7, :2])
    labels_true = np.array([0, 0, 0, 1, 2, 3, 4])
    small = replace(gallery, features=gallery.features[:7], labels_true=labels_true, graph=graph)
    shown = replace(report_part(small, clustering), figures={})
    words = write_table(result_of(small, clustering), parts={"faces": shown}).words
    rows = re.findall(r"(\d) – (\d) . (right|wrong)", words)
    assert rows == [("4", "5", "wrong"), ("0", "1", "right"), ("1", "2", "right"), ("5", "3", "right")]
    similarities = [gallery.features[4] @ gallery.features[5], gallery.features[5] @ gallery.features[3]]
    assert f"4 – 5 ✗ wrong 0.625 {similarities[0]:.3f} 1 (1 + 1 faces) 0 – 1" in words
    assert f"5 – 3 ✓ right 0.250 {similarities[1]:.3f} 1 (2 faces) 0 (5 faces)" in words
