from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lcde import plots
from lcde.clustering.pipeline import Clustering, LCDEClustering
from lcde.data.part import Part


class CosineNetworks:
    """Networks that go by the cosine similarity alone."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def connectivity(self) -> np.ndarray:
        return self.part.similarities.clip(0, 1)

    def edge_probability(self, edges: np.ndarray) -> np.ndarray:
        return np.prod(self.part.features[edges], axis=1).sum(axis=1)


@pytest.fixture(scope="module")
def part() -> Part:
    """60 faces of 12 identities with 6 neighbours."""
    rng = np.random.default_rng(0)
    labels_true = np.repeat(np.arange(12), 5)
    features = rng.normal(size=(12, 8))[labels_true] + rng.normal(size=(60, 8)) * 0.6
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    similarities = features @ features.T
    np.fill_diagonal(similarities, 1)
    indices = np.argsort(-similarities, axis=1, kind="stable")[:, :6].astype(np.int32)
    return Part("tiny", features, indices, np.take_along_axis(similarities, indices, axis=1), labels_true)


@pytest.fixture(scope="module")
def clustering(part: Part) -> Clustering:
    return LCDEClustering()(part.features, part.indices, part.similarities, CosineNetworks(part))


def test_method_comparison_puts_lcde_first_and_prints_percentages():
    rows = [("a", "Infomap", 0.5, 0.25), ("a", "LCDE", 0.914, 0.897), ("b", "LCDE", 0.8, float("nan"))]
    figure = plots.method_comparison(rows)
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["LCDE", "Infomap"]
    assert [text.get_text() for text in first.texts] == ["91.4", "50.0", "89.7", "25.0"]
    assert [text.get_text() for text in second.texts] == ["80.0", "", "", ""], "unknown scores have no bar"
    assert first.yaxis_inverted()


@pytest.mark.parametrize("rows_at_a_time", [plots.ROWS, 7])
def test_edge_separation_counts_every_edge(part, clustering, monkeypatch, rows_at_a_time):
    monkeypatch.setattr(plots, "ROWS", rows_at_a_time)
    figure = plots.edge_separation(part, clustering)
    same = part.labels_true[part.indices[:, 1:]] == part.labels_true[:, None]
    weights = (part.similarities[:, 1:], (part.similarities * clustering.connectivity)[:, 1:])
    for axes, weight in zip(figure.axes, weights, strict=True):
        stairs = {patch.get_label(): patch.get_data() for patch in axes.patches}
        for name, mask in (("same identity", same), ("different identities", ~same)):
            values, edges, _ = stairs[name]
            np.testing.assert_array_equal(values, np.histogram(weight[mask], edges)[0])
            assert values.sum() == mask.sum()
        assert axes.get_yscale() == "log"
    (threshold,) = figure.axes[1].lines
    assert threshold.get_xdata()[0] == clustering.similarity_threshold


def test_a_threshold_of_whitened_similarities_is_not_drawn_among_others(part, clustering):
    without_networks = replace(clustering, edges_density=clustering.edges_density[:0])
    assert not plots.edge_separation(part, without_networks).axes[1].lines


def test_edge_separation_measures_the_overlap(part, clustering):
    one_identity = Part("one", part.features, part.indices, part.similarities, np.zeros(len(part), dtype=np.int64))
    assert "overlap by 0%" in plots.edge_separation(one_identity, clustering).axes[0].get_title()


def test_cluster_sizes_counts_clusters_of_at_least_each_size():
    labels, labels_true = np.array([0, 0, 0, 1, 1, 5, 6]), np.array([0, 0, 0, 0, 1, 1, 1])
    predicted, true = plots.cluster_sizes(labels, labels_true).axes[0].lines
    np.testing.assert_array_equal(predicted.get_xydata(), [(1, 4), (1, 4), (2, 2), (3, 1)])
    np.testing.assert_array_equal(true.get_xydata(), [(1, 2), (3, 2), (4, 1)])
    assert predicted.get_label() == "4 predicted clusters"
    assert len(plots.cluster_sizes(labels).axes[0].lines) == 1


def test_density_correctness_bins_edges_by_the_density_of_their_face(part, clustering):
    (axes,) = plots.density_correctness(part, replace(clustering, edge_threshold=0.8)).axes
    correct, accepted = (line.get_xydata() for line in axes.lines)
    rank = np.argsort(np.argsort(clustering.density, kind="stable"))
    source, target = clustering.edges_density.T
    for number, (x, y) in enumerate(correct):
        edges = rank[source] // 6 == number
        assert x == pytest.approx(clustering.density[rank // 6 == number].mean())
        assert y == pytest.approx(100 * (part.labels_true[source] == part.labels_true[target])[edges].mean())
        assert accepted[number, 1] == pytest.approx(100 * replace(clustering, edge_threshold=0.8).kept[edges].mean())
    assert len(correct) == 10


def test_density_correctness_without_edges(part):
    nothing, none = np.zeros((len(part), part.k), dtype=np.float32), np.empty((0, 2), dtype=np.int64)
    density, labels = np.zeros(len(part)), np.arange(len(part))
    no_edges = none, np.empty(0, dtype=np.float32), none
    empty = Clustering(labels, labels < 0, nothing, density, *no_edges, 0.5, 0.5, None, None)
    (axes,) = plots.density_correctness(part, empty).axes
    assert [len(line.get_xdata()) for line in axes.lines] == [0, 0]


def test_training_curves_draws_what_is_there():
    history = [
        {"epoch": 1, "val/a/edge_loss": 0.5, "val/a/pairwise_f": 0.8, "val/a/bcubed_f": 0.7, "val/pairwise_f": 0.8},
        {"epoch": 3, "val/a/edge_loss": 0.4, "val/a/pairwise_f": 0.9, "val/a/bcubed_f": 0.8},
    ]
    history[1]["train/edge_loss_epoch"] = 0.3
    losses, scores = plots.training_curves(history).axes
    train, val = losses.lines
    np.testing.assert_array_equal(train.get_xydata(), [(3, 0.3)])
    np.testing.assert_array_equal(val.get_xydata(), [(1, 0.5), (3, 0.4)])
    pairwise, bcubed = scores.lines  # the mean of a single part would hide it
    np.testing.assert_allclose(pairwise.get_ydata(), [80, 90])
    np.testing.assert_allclose(bcubed.get_ydata(), [70, 80])
    assert (pairwise.get_linestyle(), bcubed.get_linestyle()) == ("-", "--")
    assert [text.get_text() for text in scores.get_legend().get_texts()] == ["a"]


def test_training_curves_adds_the_mean_of_several_parts():
    epoch = {"val/a/pairwise_f": 0.8, "val/b/pairwise_f": 0.6, "val/pairwise_f": 0.7}
    _, scores = plots.training_curves([epoch, epoch]).axes
    assert [text.get_text() for text in scores.get_legend().get_texts()] == ["a", "b", "mean of parts"]
    np.testing.assert_array_equal(scores.lines[0].get_xdata(), [0, 1])


def sweep_rows(*settings: dict[str, str]) -> list[tuple[dict[str, str], str, float, float]]:
    return [
        (values, part, (number + 1) / 10, (number + 2) / 20)
        for number, values in enumerate(settings)
        for part in ("a", "b")
    ]


def test_sweep_scores_draws_a_line_for_each_value_of_the_other_key():
    grid = [{"τ": tau, "k": k} for tau in ("0.5", "null") for k in ("16", "8", "24")]
    figure = plots.sweep_scores(sweep_rows(*grid))
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    for axes in figure.axes:
        assert axes.get_xlabel() == "k"
        assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "-", "--"]
        first, _, _, last = axes.lines
        np.testing.assert_allclose(first.get_xydata(), [(8, 20), (16, 10), (24, 30)])
        np.testing.assert_allclose(last.get_xydata(), [(8, 30), (16, 25), (24, 35)])
    [legend] = figure.legends
    assert legend.get_title().get_text() == "τ"
    assert [text.get_text() for text in legend.get_texts()] == ["0.5", "null"]


def test_sweep_scores_of_one_key_is_one_line_of_each_measure():
    figure = plots.sweep_scores(sweep_rows({"τ": "0.7"}, {"τ": "0.6"}))
    pairwise, bcubed = figure.axes[0].lines
    np.testing.assert_allclose(pairwise.get_xydata(), [(0.6, 20), (0.7, 10)])
    np.testing.assert_allclose(bcubed.get_xydata(), [(0.6, 15), (0.7, 10)])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pairwise F", "BCubed F"]


def test_sweep_scores_of_a_search_are_points_against_each_key():
    trials = [{"lr": f"{number}e-4", "dropout": f"0.{number}", "pairs": "mixed"} for number in range(1, 9)]
    figure = plots.sweep_scores(sweep_rows(*trials))
    shown = [(axes.get_title(), axes.get_xlabel()) for axes in figure.axes if axes.lines]
    assert shown == [("a", "lr"), ("a", "dropout"), ("b", "lr"), ("b", "dropout")]
    assert {line.get_linestyle() for axes in figure.axes for line in axes.lines} == {"None"}
    np.testing.assert_allclose(figure.axes[1].lines[0].get_xdata(), [number / 10 for number in range(1, 9)])


def test_sweep_scores_without_a_number_are_bars():
    figure = plots.sweep_scores(sweep_rows({"pairs": "mixed"}, {"pairs": "uniform"}))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["pairs=mixed", "pairs=uniform"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["10.0", "20.0", "10.0", "15.0"]


def test_save_figures_writes_every_figure(part, clustering, tmp_path):
    figures = {
        "edge_separation": plots.edge_separation(part, clustering),
        "density_correctness": plots.density_correctness(part, clustering),
        "training_curves": plots.training_curves([]),
    }
    assert all(isinstance(figure, Figure) for figure in figures.values())
    plots.save_figures(figures, tmp_path / "figures")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {f"{name}.png" for name in figures}
    assert imread(tmp_path / "figures" / "edge_separation.png").shape[1] == 9 * 150
