from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lcde.evaluation.published import ScoreRow
from lcde.report import plots


@pytest.fixture(scope="module")
def clustering(gallery, cluster):
    return cluster(gallery)


def without(clustering, **details):
    return replace(clustering, details=replace(clustering.details, **details))


def test_method_comparison_puts_evaluated_methods_first_and_prints_percentages():
    rows = [
        ScoreRow("a", "LCDE", 0.5, 0.25),
        ScoreRow("a", "mine", 0.914, 0.897, emphasised=True),
        ScoreRow("b", "mine", 0.8, float("nan"), emphasised=True),
    ]
    figure = plots.method_comparison(rows)
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert [name.get_text() for name in first.get_yticklabels()] == ["mine", "LCDE"]
    assert [text.get_text() for text in first.texts] == ["91.4", "50.0", "89.7", "25.0"]
    assert [text.get_text() for text in second.texts] == ["80.0", "", "", ""], "unknown scores have no bar"
    assert [bar.get_facecolor()[3] for bar in first.patches] == [1, 0.5, 1, 0.5]
    assert first.yaxis_inverted()


def test_names_are_drawn_as_they_are(gallery, clustering, tmp_path):
    rows = [ScoreRow(name, name, 0.5, 0.25) for name in (r"a$\bad$b", r"$\frac$", r"\$x$", "a_b^{c", "<b>")]
    figures = {
        "methods": plots.method_comparison(rows),
        "lines": plots.sweep_scores([({"k": str(k), "name": row.method}, row) for row in rows for k in (1, 2)]),
        "bars": plots.sweep_scores([({"name": row.method}, row) for row in rows]),
        "edges": plots.edge_separation(replace(gallery, name="a$bad$b $frac$ $x$ a_b^{c <b>"), clustering),
    }
    assert all(file.is_file() for file in plots.save_figures(figures, tmp_path).values())


@pytest.mark.parametrize("rows_at_a_time", [4096, 7])
def test_edge_separation_counts_every_edge(gallery, clustering, monkeypatch, rows_at_a_time):
    monkeypatch.setattr("lcde.data.gallery.ROWS", rows_at_a_time)
    figure = plots.edge_separation(gallery, clustering)
    graph = gallery.graph
    same = gallery.labels_true[graph.indices[:, 1:]] == gallery.labels_true[:, None]
    weights = (graph.similarities[:, 1:], (graph.similarities * clustering.details.connectivity)[:, 1:])
    for axes, weight in zip(figure.axes, weights, strict=True):
        stairs = {patch.get_label(): patch.get_data() for patch in axes.patches}
        for name, mask in (("same identity", same), ("different identities", ~same)):
            values, edges, _ = stairs[name]
            np.testing.assert_array_equal(values, np.histogram(weight[mask], edges)[0])
            assert values.sum() == mask.sum()
        assert axes.get_yscale() == "log"
    (threshold,) = figure.axes[1].lines
    assert threshold.get_xdata()[0] == clustering.details.similarity_threshold
    assert not figure.axes[0].lines, "the threshold is of the learned weight"


def test_edge_separation_without_connectivity_has_one_panel_and_no_threshold(gallery, clustering):
    (axes,) = plots.edge_separation(gallery, without(clustering, connectivity=None)).axes
    assert axes.get_title().startswith("Raw similarity")
    assert axes.get_ylabel()
    assert not axes.lines
    unknown = plots.edge_separation(gallery, without(clustering, similarity_threshold=None))
    assert not unknown.axes[1].lines


def test_edge_separation_measures_the_overlap(gallery, clustering):
    one_identity = replace(gallery, labels_true=np.zeros(len(gallery), dtype=np.int64))
    assert "overlap by 0%" in plots.edge_separation(one_identity, clustering).axes[0].get_title()


def test_cluster_sizes_counts_clusters_of_at_least_each_size():
    labels, labels_true = np.array([0, 0, 0, 1, 1, 5, 6]), np.array([0, 0, 0, 0, 1, 1, 1])
    predicted, true = plots.cluster_sizes(labels, labels_true).axes[0].lines
    np.testing.assert_array_equal(predicted.get_xydata(), [(1, 4), (2, 2), (3, 1)])
    np.testing.assert_array_equal(true.get_xydata(), [(1, 2), (3, 2), (4, 1)])
    assert predicted.get_label() == "4 predicted clusters"
    assert len(plots.cluster_sizes(labels).axes[0].lines) == 1


def labels_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_training_curves_draw_the_losses_of_any_model_and_mark_the_chosen_epoch():
    history = [
        {"epoch": 1, "val/edge_loss": 0.5, "val/pairwise_f": 0.8, "val/bcubed_f": 0.7, "val/f_score": 0.75},
        {"epoch": 3, "val/edge_loss": 0.4, "val/pairwise_f": 0.9, "val/bcubed_f": 0.8, "val/f_score": 0.85},
        {"epoch": 4, "val/edge_loss": 0.3, "val/pairwise_f": 0.9, "val/bcubed_f": 0.8, "val/f_score": 0.85},
    ]
    extra = {"train/edge_loss_epoch": 0.3, "train/edge_loss_step": 7, "train/edge_loss": 8, "train/loss_epoch": 0.1}
    history[1] |= extra | {"test/my part/pairwise_f": 0.6, "test/my part/bcubed_f": 0.5, "lr-AdamW": 1}
    losses, scores = plots.training_curves(history, chosen=0.85).axes
    train, single, val, _ = losses.lines
    np.testing.assert_array_equal(val.get_xydata(), [(1, 0.5), (3, 0.4), (4, 0.3)])
    np.testing.assert_array_equal(train.get_xydata(), [(3, 0.3)])
    np.testing.assert_array_equal(single.get_xydata(), [(3, 0.1)])
    assert labels_of(losses) == ["edge loss", "loss", "chosen epoch: 4"], "the latest of equal epochs"
    assert (train.get_color(), train.get_linestyle(), val.get_linestyle()) == (val.get_color(), "-", "--")
    pairwise, part_pairwise, bcubed, part_bcubed, chosen = scores.lines
    np.testing.assert_allclose(pairwise.get_ydata(), [80, 90, 90])
    np.testing.assert_allclose(bcubed.get_ydata(), [70, 80, 80])
    assert (pairwise.get_linestyle(), bcubed.get_linestyle()) == ("-", "--")
    np.testing.assert_allclose([line.get_xydata()[0] for line in (part_pairwise, part_bcubed)], [(3, 60), (3, 50)])
    assert list(chosen.get_xdata()) == [4, 4]
    assert labels_of(scores) == ["held-out identities", "my part", "chosen epoch: 4"]


def test_training_curves_without_held_out_scores_mark_nothing():
    epoch = {"test/a/pairwise_f": 0.8, "test/b/pairwise_f": 0.6}
    losses, scores = plots.training_curves([epoch, epoch]).axes
    assert labels_of(scores) == ["a", "b"]
    np.testing.assert_array_equal(scores.lines[0].get_xdata(), [0, 1])
    assert not losses.lines
    assert not plots.training_curves([]).axes[1].lines


def sweep_rows(*settings: dict[str, str]) -> list[tuple[dict[str, str], ScoreRow]]:
    return [
        (values, ScoreRow(part, str(number), (number + 1) / 10, (number + 2) / 20))
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
    assert [text.get_text() for text in legend.get_texts()] == [
        *("0.5 pairwise F", "0.5 BCubed F", "null pairwise F", "null BCubed F")
    ]


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


def test_save_figures_writes_every_figure(tmp_path):
    figures = {name: Figure(figsize=(1, 1)) for name in ("one", "two")}
    plots.save_figures(figures, tmp_path / "figures")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"one.png", "two.png"}
    assert imread(tmp_path / "figures" / "one.png").shape[:2] == (150, 150)
