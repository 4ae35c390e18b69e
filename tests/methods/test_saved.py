from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lcde.clustering.whitening
from lcde.clustering.assignment import assign_faces
from lcde.clustering.communities import communities
from lcde.clustering.components import connected_labels
from lcde.clustering.edges import official_similarity_threshold
from lcde.clustering.impostors import Impostors
from lcde.clustering.merging import Merging
from lcde.clustering.whitening import within_cluster_whitening
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery, KNNGraph
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.methods.classical import ComponentsRule
from lcde.methods.lcde import LCDERule
from lcde.methods.method import Clustering
from lcde.methods.saved import SavedClustering
from lcde.methods.second_pass import SecondPass
from lcde.methods.unsupervised import UnsupervisedRule
from lcde.metrics import Contingency, pairwise

REFINED = LCDERule(0.3, second_pass=SecondPass(0.01, num_trials=1))


class Scores:
    """Scores computed from features and graph, in place of trained networks."""

    def __init__(self, gallery):
        self.gallery = gallery

    def connectivity(self, first_row=0):
        return np.abs(self.gallery.features[self.gallery.graph.indices[first_row:], 0])

    def edge_probability(self, edges):
        return np.abs(self.gallery.features[edges, 1]).sum(axis=1)


class Model:
    def bind(self, gallery, precision, show_progress, score_cache):
        return Scores(gallery)


@pytest.fixture
def saved(make_gallery):
    """A clustering of 40 faces by their identities, of which the smallest is noise."""
    gallery = make_gallery(0)
    labels = np.unique(gallery.labels_true, return_inverse=True)[1].astype(np.int64) - 1
    return SavedClustering(gallery.features, gallery.graph, labels, gallery.graph.k, UnsupervisedRule())


@pytest.mark.parametrize("rule", [UnsupervisedRule(0.001, 3, seed=7, min_cluster_size=2), LCDERule(), REFINED])
def test_a_file_keeps_everything(rule, saved, tmp_path):
    saved = replace(saved, rule=rule)
    saved.save(tmp_path / "new" / "kept.npz")
    read = SavedClustering.load(tmp_path / "new" / "kept.npz")
    assert (read.rule, read.k) == (rule, saved.k)
    assert type(read.k) is int
    ours, theirs = ((s.features, s.labels, s.graph.indices, s.graph.similarities) for s in (saved, read))
    for written, loaded in zip(ours, theirs, strict=True):
        assert np.array_equal(written, loaded)
        assert written.dtype == loaded.dtype


def test_noise_of_the_clustering_is_kept(saved):
    gallery = Gallery("test", saved.features, saved.graph)
    clustering = Clustering(np.arange(40), noise=np.arange(40) < 2)
    assert SavedClustering.of(gallery, clustering, 6, LCDERule()).labels.tolist() == [-1, -1, *range(38)]


def test_rules_that_cannot_assign_are_refused(saved):
    gallery = Gallery("test", saved.features, saved.graph)
    with pytest.raises(InputError, match="ComponentsRule cannot assign new faces"):
        SavedClustering.of(gallery, Clustering(saved.labels), 6, ComponentsRule(0.5))


def test_other_files_are_refused(saved, tmp_path):
    path = tmp_path / "kept.npz"
    with pytest.raises(InputError, match=r"kept\.npz does not exist"):
        SavedClustering.load(path)
    np.save(tmp_path / "array.npy", np.eye(3))
    np.savez(tmp_path / "graph.npz", data=np.eye(3))
    saved.save(path)
    contents = [b"text", path.read_bytes()[:-100], *(file.read_bytes() for file in tmp_path.glob("[ag]*"))]
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"kept\.npz is empty"):
        SavedClustering.load(path)
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"kept\.npz cannot be read as a clustering"):
            SavedClustering.load(path)


def rewritten(saved, path, **values):
    saved.save(path)
    with np.load(path) as archive:
        arrays = dict(archive) | values
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_files_of_version_0_1_are_refused(saved, tmp_path):
    path = rewritten(saved, tmp_path / "kept.npz", rule=None, thresholds=np.zeros(3), edge_threshold=0.5, trained=True)
    with pytest.raises(
        InputError, match=r"kept\.npz cannot be read as .* this version .*rule.*; cluster the faces again"
    ):
        SavedClustering.load(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("features", lambda values: values.astype(np.float64)),
        ("features", lambda values: values[0]),
        ("features", lambda values: values[:0]),
        ("features", lambda values: 2 * values),
        ("features", lambda values: values * np.nan),
        ("indices", lambda values: values[1:]),
        ("indices", lambda values: values + 1),
        ("indices", lambda values: values - 2),
        ("indices", lambda values: values.astype(float)),
        ("indices", lambda values: values[:, 1:]),
        ("similarities", lambda values: values[:, 1:]),
        ("similarities", lambda values: values.astype(np.float64)),
        ("similarities", lambda values: values + 1),
        ("similarities", lambda values: values * np.nan),
        ("labels", lambda values: values[1:]),
        ("labels", lambda values: values + 2),
        ("labels", lambda values: values - 1),
        ("labels", lambda values: values.astype(float)),
        ("k", lambda _: 7),
        ("k", lambda _: 1),
        ("rule", lambda _: "3"),
        ("rule", lambda _: "{}"),
        ("rule", lambda _: '{"_target_": "SecondPass"}'),
    ],
)
def test_damaged_values_are_refused(name, change, saved, tmp_path):
    saved.save(tmp_path / "kept.npz")
    with np.load(tmp_path / "kept.npz") as archive:
        value = change(archive[name])
    with pytest.raises(InputError, match=r"kept\.npz cannot be read as a clustering .*: its .* do not fit;"):
        SavedClustering.load(rewritten(saved, tmp_path / "kept.npz", **{name: value}))


@pytest.mark.parametrize(
    "rule",
    ["", "[", '{"_target_": "os.system"}', '{"_target_": "LCDERule", "edge": 1}', '{"_target_": ["LCDERule"]}'],
)
def test_nothing_but_rules_is_built_from_a_file(rule, saved, tmp_path):
    with pytest.raises(InputError, match=r"kept\.npz cannot be read as a clustering"):
        SavedClustering.load(rewritten(saved, tmp_path / "kept.npz", rule=rule))


def test_settings_out_of_range_are_named(saved, tmp_path):
    with pytest.raises(InputError, match=r"clustering\.edge_threshold=7 must be"):
        SavedClustering.load(
            rewritten(saved, tmp_path / "kept.npz", rule='{"_target_": "LCDERule", "edge_threshold": 7}')
        )


def assigned_face_by_face(gallery, labels, threshold, scores, ask_strong, min_connectivity):
    """Labels of all faces, known ``labels`` first."""
    known, indices = len(labels), gallery.graph.indices
    count, edges, weights = len(indices) - known, [], []
    for face in range(known, len(indices)):
        row, weight = indices[face], gallery.graph.similarities[face].copy()
        if scores:
            weight *= scores.connectivity()[face]
        best = 1 + weight[1:].argmax()
        for column in range(1, 6):
            joins = weight[column] >= threshold
            if scores and column == best and (ask_strong or not joins):
                asked = scores.connectivity()[face, column] >= min_connectivity
                joins = asked and scores.edge_probability(np.array([[face, row[column]]]))[0] > 0.5
            if joins and weight[column] > 0 and (row[column] >= known or labels[row[column]] >= 0):
                edges.append((face, row[column]))
                weights.append(weight[column])
    edges, weights = np.array(edges, dtype=np.int64).reshape(-1, 2), np.array(weights)
    among = edges[:, 1] >= known
    ends = edges[among] - known
    groups = connected_labels(ends, count) if scores else communities(ends, weights[among], count, 1, seed=0)
    return assign_faces(edges, weights, labels, groups)


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 12),
    trained=st.booleans(),
    asking=st.sampled_from([(True, 0.0), (False, 0.0), (True, 0.6), (False, 0.6)]),
)
def test_assignment_follows_its_definition_face_by_face(make_gallery, seed, count, trained, asking):
    gallery = make_gallery(seed, num_faces=40 + count)
    labels = np.random.default_rng(seed).integers(-1, 6, size=40)
    labels = np.unique(np.append(labels, -1), return_inverse=True)[1][:40] - 1
    asked = dict(zip(("ask_strong", "min_connectivity"), asking, strict=True))
    rule = (
        LCDERule(0.3, **asked) if trained else UnsupervisedRule(2.0, 1, centring=False, whitening=False, merging=False)
    )
    saved = SavedClustering(gallery.features[:40], build_knn(gallery.features[:40], 6), labels, 6, rule)
    union = saved.assign(gallery.features[40:], Model() if trained else None)

    indices, scores = gallery.graph.indices, Scores(gallery)
    assert np.array_equal(union.graph.indices, indices)
    expected = np.append(labels, labels.max() + 1 + np.arange(count))
    for _ in range(2):
        found = 0.3 if trained else Impostors.of(gallery.features, expected, gallery.graph.similarities).similarity(2.0)
        expected = assigned_face_by_face(gallery, labels, found, scores if trained else None, **asked)
    assert np.array_equal(union.labels, expected)
    assert np.array_equal(union.labels[:40], labels)


def test_faces_that_come_one_by_one_find_those_before_them(saved):
    saved = replace(saved, rule=LCDERule(0.8))
    others = -saved.features[:1]

    class Alike(Model):
        def bind(self, gallery, *_):
            scores = Scores(gallery)
            scores.connectivity = lambda first_row: np.ones_like(gallery.graph.similarities[first_row:])
            scores.edge_probability = lambda edges: (gallery.features[edges].prod(axis=1).sum(axis=1) > 0.8).astype(
                float
            )
            return scores

    once = saved.assign(others, Alike())
    assert once.labels[-1] == saved.labels.max() + 1
    twice = once.assign(others, Alike())
    assert twice.labels[-1] == once.labels[-1]
    assert twice.features.shape == (42, 8)
    assert twice.graph.indices.shape == (42, 6)
    known = twice.assign(saved.features[saved.labels >= 0], Alike()).labels[42:]
    assert np.array_equal(known, saved.labels[saved.labels >= 0])


def test_what_does_not_fit_is_refused(saved):
    with pytest.raises(InputError, match="width of 5, those of the clustering of 8"):
        saved.assign(np.eye(1, 5, dtype=np.float32), None)
    with pytest.raises(InputError, match="made without trained networks"):
        saved.assign(saved.features, Model())
    with pytest.raises(InputError, match=r"give them with checkpoint=…"):
        replace(saved, rule=LCDERule()).assign(saved.features, None)


@pytest.mark.parametrize(
    ("compared", "expected"), [(0.9, [1, 1, 0, -1, 1, 1, 2, 2]), (0.99, [1, 1, 0, -1, 2, 2, 3, 3])]
)
def test_new_clusters_merge_by_their_centroids_and_never_with_noise(compared, expected, monkeypatch):
    turns = np.array([0.0, 0.1, 1.6, 1.5, 0.35, 0.3, 3.0, 3.1])  # of faces on a circle: 3 is noise, from 4 on new
    features = np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
    labels, graph = np.array([1, 1, 0, -1]), build_knn(features[:4], 4)

    class Fixed:
        """Joins edges of 0.99, and centroids of 0.9 with an edge of ``compared``."""

        @classmethod
        def of(cls, features, labels, similarities):
            return cls()

        def similarity(self, per_face):
            return 0.99 if per_face == 0.1 else compared

        def between_clusters(self, num_clusters, wrong):
            return 2.0

        with_look_alikes = similarity

    monkeypatch.setattr(lcde.clustering.whitening, "Impostors", Fixed)
    by_centroids = Merging.by_centroids
    monkeypatch.setattr(Merging, "by_centroids", lambda merging, _: by_centroids(merging, 0.9))
    saved = SavedClustering(features[:4], graph, labels, 4, UnsupervisedRule(0.1, centring=False, whitening=False))
    assert saved.assign(features[4:], None).labels.tolist() == expected


def test_thresholds_are_those_of_the_gallery_as_it_grows(make_gallery):
    gallery = make_gallery(0)
    others = np.eye(3, 8, dtype=np.float32) + 0.2  # the official threshold among them is low
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    graph = build_knn(others, 3)
    saved = SavedClustering(others, graph, np.arange(3), 6, LCDERule())
    union = saved.assign(gallery.features, Model())
    extended = build_knn(np.concatenate([others, gallery.features]), 6)
    threshold = official_similarity_threshold(extended.similarities)
    assert threshold > official_similarity_threshold(graph.similarities) + 0.2
    fixed = replace(saved, rule=LCDERule(threshold)).assign(gallery.features, Model())
    assert np.array_equal(union.labels, fixed.labels)
    assert np.array_equal(union.graph.indices, extended.indices)
    assert union.rule == saved.rule


@pytest.fixture
def varied():
    """A clustering of 480 faces that all differ most along the same two directions, and 120 new faces."""
    rng = np.random.default_rng(0)
    labels_true = np.concatenate([np.repeat(np.arange(60), 8), np.repeat(np.arange(60), 2)])
    faces = rng.standard_normal((60, 64))[labels_true] + 0.5 * rng.standard_normal((600, 64))
    faces[:, :2] += 6 * rng.standard_normal((600, 2))
    features = normalise(faces.astype(np.float32), "faces")
    labels = np.where(labels_true[:480] < 50, labels_true[:480], -1)
    graph = build_knn(features[:480], 20)
    return SavedClustering(features[:480], graph, labels, 20, UnsupervisedRule()), features[480:]


@pytest.mark.parametrize("whitening", [True, False])
def test_new_faces_are_whitened_by_the_known_clusters(whitening, varied):
    saved, new = varied
    rule = UnsupervisedRule(whitening=whitening, expected_merges=0)  # merges by likelihood whiten by themselves
    labels = replace(saved, rule=rule).assign(new, None).labels
    correct = (labels[480:580] == np.repeat(np.arange(50), 2)).mean()
    assert correct > 0.95 if whitening else correct < 0.85


def test_the_second_whitening_is_estimated_with_the_new_faces(varied, monkeypatch):
    saved, new = varied
    given = []
    monkeypatch.setattr(
        lcde.clustering.whitening,
        "within_cluster_whitening",
        lambda features, labels: given.append(labels) or within_cluster_whitening(features, labels),
    )
    union = saved.assign(new, None)
    assert [len(labels) for labels in given] == [600, 600]
    assert np.array_equal(given[0][:480], saved.labels)
    assert np.array_equal(given[0][480:], saved.labels.max() + 1 + np.arange(120))  # each alone at first
    assert (given[1][480:] == union.labels[480:]).mean() > 0.8


def test_new_faces_join_a_gallery_of_noise(varied):
    saved, new = varied
    union = replace(saved, labels=np.full(480, -1)).assign(new, None)
    assert (union.labels[:480] == -1).all()
    assert union.labels[480:].min() == 0


def test_trained_models_merge_what_is_new_and_keep_what_is_known(varied):
    saved, new = varied
    kept, merging = (
        replace(saved, rule=LCDERule(1, edge_threshold=1, second_pass=second_pass)).assign(new, Model()).labels
        for second_pass in (None, SecondPass(0.005))
    )
    assert np.array_equal(kept[:480], merging[:480])
    assert merging.max() < kept.max()


def test_a_gallery_that_grows_from_a_few_faces_is_clustered_about_as_well_as_at_once():
    rng = np.random.default_rng(0)
    labels_true = rng.permutation(np.repeat(np.arange(150), [*([1] * 100), *([10] * 49), 300]))
    faces = rng.standard_normal((150, 64))[labels_true] + 0.5 * rng.standard_normal((len(labels_true), 64))
    features = normalise(faces.astype(np.float32), "faces")
    rule = UnsupervisedRule(num_trials=1)
    gallery = Gallery("first", features[:30], build_knn(features[:30], 20))
    grown = SavedClustering.of(gallery, rule(gallery), 20, rule)
    for batch in np.array_split(features[30:], 10):
        grown = grown.assign(batch, None)
    assert pairwise(Contingency.of(labels_true, grown.labels)).f_score > 0.95


def test_the_graph_of_few_faces_grows_to_k(make_gallery):
    gallery = make_gallery(0)
    first = KNNGraph(np.zeros((1, 1), dtype=np.int32), np.ones((1, 1), dtype=np.float32))
    grown = SavedClustering(gallery.features[:1], first, np.zeros(1, dtype=np.int64), 6, UnsupervisedRule())
    assert np.array_equal(grown.assign(gallery.features[1:], None).graph.indices, gallery.graph.indices)
