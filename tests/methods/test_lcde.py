import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcde.clustering.communities import communities
from lcde.clustering.components import connected_labels
from lcde.clustering.density import symmetrise
from lcde.clustering.edges import official_similarity_threshold
from lcde.clustering.whitening import Whitened
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery, KNNGraph
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.methods.lcde import LCDERule
from lcde.methods.second_pass import SecondPass
from lcde.metrics import Contingency, pairwise

# Worked by hand: symmetrised, all edges have connectivity 1, but 0→2 and 4→2 ½. Densities 1.15, 1.7, 1.2, 1.1, 0.85.
GRAPH = KNNGraph(
    np.array([[0, 1, 2], [1, 0, 2], [2, 1, 3], [3, 4, 2], [4, 3, 2]], dtype=np.int32),
    np.array([[1, 0.9, 0.5], [1, 0.9, 0.8], [1, 0.8, 0.4], [1, 0.7, 0.4], [1, 0.7, 0.3]], dtype=np.float32),
)
GALLERY = Gallery("test", np.eye(5, dtype=np.float32), GRAPH)
PROBABILITY = {(0, 1): 0.875, (2, 1): 0.75, (3, 2): 0.25, (4, 3): 0.8125}


class FixedScores:
    """Given connectivity, and the probabilities above; 0 for all other edges."""

    def __init__(self, directed):
        self.directed = directed

    def connectivity(self, first_row=0):
        return self.directed[first_row:]

    def edge_probability(self, edges):
        return np.array([PROBABILITY.get(tuple(edge), 0) for edge in edges.tolist()], dtype=np.float32)


def cluster(**settings):
    return LCDERule(**settings)(GALLERY, FixedScores(np.ones(GRAPH.indices.shape, dtype=np.float32)))


def test_stages_give_the_results_worked_by_hand():
    result = cluster()
    details = result.details
    np.testing.assert_allclose(details.density, [1.15, 1.7, 1.2, 1.1, 0.85], rtol=1e-6)
    assert details.edges_density.tolist() == list(map(list, PROBABILITY))
    assert details.edge_probability.tolist() == list(PROBABILITY.values())
    assert details.edge_threshold == 0.5
    assert details.similarity_threshold == pytest.approx(0.64)
    assert details.edges_similar.shape == (0, 2)
    assert result.labels.tolist() == [0, 0, 0, 1, 1]
    assert set(result.seconds) == {"connectivity", "edges", "pairs", "components"}
    assert min(result.seconds.values()) >= 0


@pytest.mark.parametrize(
    ("threshold", "labels"),
    [(0.1, [0, 0, 0, 0, 0]), (0.75, [0, 0, 1, 2, 2]), (0.8, [0, 0, 1, 2, 2]), (0.9, [0, 1, 2, 3, 4])],
)
def test_density_edges_join_above_edge_threshold(threshold, labels):
    assert cluster(edge_threshold=threshold).labels.tolist() == labels


@pytest.mark.parametrize(("threshold", "edges"), [(0.3, []), (0.25, [[0, 2]]), (0.1, [[0, 2], [2, 4]])])
def test_similar_edges_join_from_similarity_threshold(threshold, edges):
    result = cluster(similarity_threshold=threshold, edge_threshold=1.0)
    assert result.details.edges_similar.tolist() == edges
    ends = {face for edge in edges for face in edge}
    assert [label == result.labels[0] for label in result.labels] == [face == 0 or face in ends for face in range(5)]


def test_strong_density_edges_join_unasked_if_wanted():
    settings = {"similarity_threshold": 0.75, "edge_threshold": 0.9}  # PCENet would reject all
    assert cluster(**settings).labels.tolist() == [0, 1, 2, 3, 4]
    result = cluster(**settings, ask_strong=False)
    assert result.labels.tolist() == [0, 0, 0, 1, 2]
    assert np.isnan(result.details.edge_probability).tolist() == [True, True, False, False]
    exactly = cluster(similarity_threshold=float(GRAPH.similarities[2, 1]), edge_threshold=0.9, ask_strong=False)
    assert exactly.labels.tolist() == [0, 0, 0, 1, 2]


def test_density_edges_of_little_connectivity_are_dropped_unasked_if_wanted():
    directed = np.ones(GRAPH.indices.shape, dtype=np.float32)
    directed[[3, 4], [1, 1]] = 0.4  # in both directions between 3 and 4
    for least, joins in [(0.0, True), (0.4, True), (0.41, False)]:
        result = LCDERule(min_connectivity=least)(GALLERY, FixedScores(directed))
        [position] = np.flatnonzero((result.details.edges_density == [4, 3]).all(axis=1))
        assert np.isnan(result.details.edge_probability[position]) != joins
        assert (result.labels[3] == result.labels[4]) == joins


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.5]), st.booleans(), st.sampled_from([0.1, 0.25, None]))
def test_labels_are_those_of_the_rule_edge_by_edge(make_graph, seed, least, ask_strong, threshold):
    graph, directed = make_graph(seed, 30, 6)
    answers = np.random.default_rng(seed).random((30, 30), dtype=np.float32)
    scores = FixedScores(directed)
    scores.edge_probability = lambda edges: answers[tuple(edges.T)]
    gallery = Gallery("test", np.eye(30, dtype=np.float32), graph)
    rule = LCDERule(threshold, min_connectivity=least, ask_strong=ask_strong)
    result = rule(gallery, scores)
    tau = official_similarity_threshold(graph.similarities) if threshold is None else threshold
    connectivity = symmetrise(directed, graph.indices)
    joined = result.details.edges_similar.tolist()
    for face, other in result.details.edges_density.tolist():
        column = graph.indices[face].tolist().index(other)
        strength = connectivity[face, column]
        strong = float(graph.similarities[face, column]) * float(strength) >= tau
        accepted = strength >= least and answers[face, other] > 0.5
        if accepted or (strong and not ask_strong):
            joined.append([face, other])
    expected = connected_labels(np.array(joined, dtype=np.int64).reshape(-1, 2), 30)
    assert np.array_equal(result.labels, expected)


def test_inputs_are_left_unchanged():
    directed = np.linspace(0, 1, 15, dtype=np.float32).reshape(5, 3)
    graph = KNNGraph(GRAPH.indices.copy(), GRAPH.similarities.copy())
    for array in (directed, graph.indices, graph.similarities):
        array.flags.writeable = False  # writing would raise
    result = LCDERule()(Gallery("test", GALLERY.features, graph), FixedScores(directed))
    assert np.array_equal(result.details.connectivity, symmetrise(directed, graph.indices))


def test_clusters_with_similar_centroids_merge_if_wanted():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 6)
    people = rng.standard_normal((100, 128))
    features = normalise((people[labels] + 0.8 * rng.standard_normal((600, 128))).astype(np.float32), "faces")
    gallery = Gallery("test", features, build_knn(features, 8))
    scores = FixedScores(np.ones((600, 8), dtype=np.float32))
    alone = LCDERule(1, edge_threshold=1)(gallery, scores)
    assert len(np.unique(alone.labels)) == 600
    merged = LCDERule(1, edge_threshold=1, second_pass=SecondPass(0.005))(gallery, scores)
    assert np.array_equal(merged.labels, labels)
    assert "second_pass" in merged.seconds


def test_merging_discounts_what_varies_within_all_clusters():
    """Two directions that all people vary along break each of them into two clusters."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), 12)
    faces = rng.standard_normal((60, 64))[labels] + 0.5 * rng.standard_normal((720, 64))
    faces[:, :2] += 4 * rng.standard_normal((720, 2))
    halves = np.unique(2 * labels + (faces[:, 0] > 0), return_inverse=True)[1]
    features = normalise(faces.astype(np.float32), "faces")
    gallery = Gallery("test", features, build_knn(features, 100))
    whitened, plain = Whitened.by(gallery, halves), Whitened.by(gallery, halves, whitening=False)
    merged = SecondPass(merge_trees=None).merge(halves, whitened, whitened.impostors.similarity(0.0003))
    assert len(np.unique(merged)) <= 63
    assert all(len(np.unique(labels[merged == cluster])) == 1 for cluster in np.unique(merged))
    rule = SecondPass(expected_merges=0, merge_trees=None)  # likelihood and trees discount it, too
    left = rule.merge(halves, plain, plain.impostors.similarity(0.0003))
    assert len(np.unique(left)) > 100


def test_the_second_pass_starts_from_the_clusters_of_the_rule(make_gallery):
    """The rule, step by step."""
    gallery, rule = make_gallery(0, num_faces=200), LCDERule()
    directed = np.random.default_rng(0).random(gallery.graph.indices.shape, dtype=np.float32)
    labels = rule(gallery, scores := FixedScores(directed)).labels
    whitened = Whitened.by(gallery, labels)
    labels = SecondPass().merge(labels, whitened, whitened.impostors.similarity(0.0003))
    whitened = Whitened.by(gallery, labels)
    graph, connectivity = whitened.graph, symmetrise(directed, gallery.graph.indices)
    rows, columns = np.nonzero(graph.similarities[:, 1:] >= whitened.impostors.similarity(0.0003))
    weights = (graph.similarities * connectivity)[rows, columns + 1]
    labels = communities(np.stack([rows, graph.indices[rows, columns + 1]], axis=1), weights, 200, 2, seed=0)
    expected = SecondPass().merge(labels, whitened, whitened.impostors.with_look_alikes(0.0003))
    found = LCDERule(second_pass=SecondPass(num_trials=2))(gallery, scores)
    assert np.array_equal(found.labels, expected)


def test_the_second_pass_splits_what_the_rule_wrongly_joined():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), 8)
    features = rng.standard_normal((60, 64))[labels] + 0.5 * rng.standard_normal((480, 64))
    features = normalise(features.astype(np.float32), "faces")
    gallery = Gallery("test", features, build_knn(features, 20))
    couples = labels // 2  # networks that take two people for one
    scores = FixedScores((couples[gallery.graph.indices] == couples[:, None]).astype(np.float32))
    scores.edge_probability = lambda edges: np.equal(*couples[edges].T).astype(np.float32)
    assert LCDERule(0.0)(gallery, scores).labels.max() < 40
    found = LCDERule(0.0, second_pass=SecondPass(num_trials=1))(gallery, scores).labels
    assert pairwise(Contingency.of(labels, found)).f_score > 0.95


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"edge_threshold": 7}, r"clustering\.edge_threshold=7 must be a number from 0 to 1\."),
        ({"edge_threshold": None}, r"clustering\.edge_threshold=None must be"),
        ({"edge_threshold": float("nan")}, r"clustering\.edge_threshold=nan must be"),
        ({"similarity_threshold": "abc"}, r"clustering\.similarity_threshold=abc must be .* from -1 to 1 or null\."),
        ({"similarity_threshold": True}, r"clustering\.similarity_threshold=True must be"),
        ({"min_connectivity": -0.1}, r"clustering\.min_connectivity=-0\.1 must be"),
        ({"ask_strong": "no"}, r"clustering\.ask_strong=no must be True or False"),
        ({"precision": "half"}, r"clustering\.precision=half must be float32 or auto"),
        ({"second_pass": {"num_trials": 3}}, r"clustering\.second_pass=.* must be a SecondPass"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        LCDERule(**settings)


@pytest.mark.parametrize(("key", "value"), [("impostors_per_face", -1), ("false_edges", None), ("num_trials", 0)])
def test_wrong_settings_of_the_second_pass_are_named(key, value):
    with pytest.raises(InputError, match=rf"clustering\.second_pass\.{key}={value} must be a"):
        SecondPass(**{key: value})
