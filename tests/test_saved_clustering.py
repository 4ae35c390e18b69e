from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcde.clustering.assign import assign_faces
from lcde.clustering.centroids import CentroidRule
from lcde.clustering.communities import communities
from lcde.clustering.components import connected_labels
from lcde.clustering.edges import official_similarity_threshold
from lcde.clustering.pipeline import LCDEClustering
from lcde.clustering.thresholds import ThresholdRule
from lcde.clustering.unsupervised import Unsupervised
from lcde.clustering.whitening import Whitening
from lcde.data.formats import normalise
from lcde.data.knn import build_knn
from lcde.data.part import Part
from lcde.errors import InputError
from lcde.metrics import Contingency, pairwise
from lcde.saved_clustering import TRIALS, SavedClustering

FIXED = ThresholdRule(0.8, None, None)


@pytest.fixture
def saved(make_part):
    """A clustering of 40 faces by their identities, of which the smallest is noise."""
    part = make_part(0)
    labels = np.unique(part.labels_true, return_inverse=True)[1].astype(np.int64) - 1
    return SavedClustering(
        part.features, part.indices, part.similarities, labels, part.k, FIXED, edge_threshold=0.5, trained=False
    )


class Scores:
    """Networks that read their scores off the features and the graph."""

    def __init__(self, features, indices):
        self.features, self.indices = features, indices

    def connectivity(self, first_row=0):
        return np.abs(self.features[self.indices[first_row:], 0])

    def edge_probability(self, edges):
        return np.abs(self.features[edges, 1]).sum(axis=1)


def test_a_file_keeps_everything(saved, tmp_path):
    saved.save(tmp_path / "new" / "kept.npz")
    read = SavedClustering.load(tmp_path / "new" / "kept.npz")
    for name, value in vars(saved).items():
        assert np.array_equal(getattr(read, name), value)
        assert type(getattr(read, name)) is type(value)
        assert getattr(value, "dtype", None) == getattr(getattr(read, name), "dtype", None)


def test_thresholds_given_as_integers_are_kept(make_part, tmp_path):
    part = make_part(0)
    graph = part.indices, part.similarities
    networks = Scores(part.features, part.indices)
    clustered = LCDEClustering(similarity_threshold=1, edge_threshold=1)(part.features, *graph, networks)
    SavedClustering.of(part, clustered, part.k, trained=True).save(tmp_path / "kept.npz")
    read = SavedClustering.load(tmp_path / "kept.npz")
    assert (read.edge_threshold, read.thresholds) == (1.0, ThresholdRule(1.0, None, None))


def test_other_files_are_refused(saved, tmp_path):
    path = tmp_path / "kept.npz"
    with pytest.raises(InputError, match=r"kept\.npz does not exist"):
        SavedClustering.load(path)
    np.save(tmp_path / "array.npy", np.eye(3))
    np.savez(tmp_path / "graph.npz", data=np.eye(3))
    saved.save(path)
    contents = [b"", b"text", path.read_bytes()[:-100], *(file.read_bytes() for file in tmp_path.glob("[ag]*"))]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"kept\.npz is not a clustering"):
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
        ("labels", lambda values: values[1:]),
        ("labels", lambda values: values + 2),
        ("labels", lambda values: values - 1),
        ("labels", lambda values: values.astype(float)),
        ("indices", lambda values: values[:, 1:]),
        ("similarities", lambda values: values[:, 1:]),
        ("similarities", lambda values: values.astype(np.float64)),
        ("similarities", lambda values: values + 1),
        ("similarities", lambda values: values * np.nan),
        ("k", lambda _: 7),
        ("k", lambda _: 1),
        ("k", lambda _: 6.0),
        ("thresholds", lambda _: ThresholdRule(np.inf, None, None)),
        ("edge_threshold", lambda _: "0.5"),
        ("edge_threshold", lambda _: np.inf),
        ("edge_threshold", lambda _: np.nan),
        ("trained", lambda _: 1),
        ("trained", lambda _: np.array([True])),
    ],
)
def test_damaged_values_are_refused(name, change, saved, tmp_path):
    replace(saved, **{name: change(getattr(saved, name))}).save(tmp_path / "kept.npz")
    with pytest.raises(InputError, match=r"kept\.npz is damaged"):
        SavedClustering.load(tmp_path / "kept.npz")


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12), trained=st.booleans())
def test_assignment_is_the_rule_face_by_face(make_part, seed, count, trained):
    part = make_part(seed, num_faces=40 + count)
    labels = np.random.default_rng(seed).integers(-1, 6, size=40)
    labels = np.unique(np.append(labels, -1), return_inverse=True)[1][:40] - 1
    graph = build_knn(part.features[:40], 6)
    saved = SavedClustering(part.features[:40], *graph, labels, 6, ThresholdRule(0.3, None, None), 0.5, trained)
    union = saved.assign(part.features[40:], Scores if trained else None)

    assert np.array_equal(union.indices, part.indices)
    networks, edges, weights = Scores(part.features, part.indices), [], []
    for face in range(40, 40 + count):
        row, weight = part.indices[face], part.similarities[face].copy()
        if trained:
            weight *= networks.connectivity()[face]
        best = 1 + weight[1:].argmax()
        for column in range(1, 6):
            if trained and column == best:
                joins = networks.edge_probability(np.array([[face, row[column]]]))[0] > 0.5
            else:
                joins = weight[column] >= 0.3
            if joins and weight[column] > 0 and (row[column] >= 40 or labels[row[column]] >= 0):
                edges.append((face, row[column]))
                weights.append(weight[column])
    edges = np.array(edges, dtype=np.int64).reshape(-1, 2)
    assert np.array_equal(union.labels[:40], labels)
    edges, weights = edges, np.array(weights)
    among = edges[:, 1] >= 40
    ends = edges[among] - 40
    groups = connected_labels(ends, count) if trained else communities(ends, weights[among], count, TRIALS, seed=0)
    assert np.array_equal(union.labels[40:], assign_faces(edges, weights, labels, groups))
    assert union.labels.min() >= -1


def test_faces_that_come_one_by_one_find_those_before_them(saved):
    strangers = -saved.features[:1]
    once = saved.assign(strangers, None)
    assert once.labels[-1] == saved.labels.max() + 1
    twice = once.assign(strangers, None)
    assert twice.labels[-1] == once.labels[-1]
    assert twice.features.shape == (42, 8)
    assert twice.indices.shape == (42, 6)
    known = twice.assign(saved.features[saved.labels >= 0], None).labels[42:]
    assert np.array_equal(known, saved.labels[saved.labels >= 0])


def test_what_does_not_fit_is_refused(saved):
    with pytest.raises(InputError, match="width of 5, those of the clustering of 8"):
        saved.assign(np.eye(1, 5, dtype=np.float32), None)
    with pytest.raises(InputError, match="made without trained networks"):
        saved.assign(saved.features, Scores)
    with pytest.raises(InputError, match=r"give them with checkpoint=…"):
        replace(saved, trained=True).assign(saved.features, None)


def test_what_new_faces_open_merges_by_the_centroids_and_never_with_noise():
    turns = np.array([0.0, 0.1, 1.6, 1.5, 0.45, 0.5, 3.0, 3.1])  # of faces on a circle: 3 is noise, from 4 on new
    features = np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
    labels, graph = np.array([1, 1, 0, -1]), build_knn(features[:4], 4)
    saved = SavedClustering(features[:4], *graph, labels, 4, ThresholdRule(0.99, None, None), 0.5, trained=False)
    assert saved.assign(features[4:], None).labels.tolist() == [1, 1, 0, -1, 2, 2, 3, 3]

    def merged(*similarities):
        rule = CentroidRule(*similarities)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ThresholdRule, "centroids", lambda *_: rule)
            patch.setattr(Whitening, "__call__", lambda _, features: features)
            merging = replace(saved, thresholds=ThresholdRule(0.99, None, 0.5))
            return merging.assign(features[4:], None).labels.tolist()

    assert merged(0.9, 0.9) == [1, 1, 0, -1, 1, 1, 2, 2]
    assert merged(-1.0, -1.0)[:4] == labels.tolist()


def test_thresholds_are_those_of_the_gallery_as_it_grows(make_part):
    part = make_part(0)
    strangers = np.eye(3, 8, dtype=np.float32) + 0.2  # the official threshold among them is low
    strangers /= np.linalg.norm(strangers, axis=1, keepdims=True)
    official = ThresholdRule(None, None, None)
    graph = build_knn(strangers, 3)
    saved = SavedClustering(strangers, *graph, np.arange(3), 6, official, edge_threshold=0.5, trained=False)
    union = saved.assign(part.features, None)
    features = np.concatenate([strangers, part.features])
    indices, similarities = build_knn(features, 6)
    threshold = official_similarity_threshold(similarities)
    assert threshold > official_similarity_threshold(graph[1]) + 0.2
    fixed = replace(saved, thresholds=ThresholdRule(threshold, None, None)).assign(part.features, None)
    assert np.array_equal(union.labels, fixed.labels)
    assert np.array_equal(union.indices, indices)
    assert union.thresholds == official


@pytest.fixture
def varied():
    """A clustering of 480 faces that all differ most along the same two directions, and 120 new faces."""
    rng = np.random.default_rng(0)
    labels_true = np.concatenate([np.repeat(np.arange(60), 8), np.repeat(np.arange(60), 2)])
    faces = rng.standard_normal((60, 64))[labels_true] + 0.5 * rng.standard_normal((600, 64))
    faces[:, :2] += 6 * rng.standard_normal((600, 2))
    features = normalise(faces.astype(np.float32), "faces")
    labels = np.where(labels_true[:480] < 50, labels_true[:480], -1)
    rule = ThresholdRule(None, 0.0005, 0.002)
    graph = build_knn(features[:480], 20)
    return SavedClustering(features[:480], *graph, labels, 20, rule, 0.5, trained=False), features[480:]


def test_new_faces_are_seen_as_the_known_clusters_let_them_be(varied, monkeypatch):
    saved, new = varied
    expected = np.repeat(np.arange(60), 2)[:100]
    assert (saved.assign(new, None).labels[480:580] == expected).mean() > 0.95
    monkeypatch.setattr(Whitening, "__call__", lambda _, features: features)
    assert (saved.assign(new, None).labels[480:580] == expected).mean() < 0.85


def test_the_second_time_new_faces_teach_too(varied, monkeypatch):
    saved, new = varied
    learn, seen_by = Whitening.of, []
    monkeypatch.setattr(Whitening, "of", lambda features, labels: seen_by.append(labels) or learn(features, labels))
    union = saved.assign(new, None)
    assert [len(labels) for labels in seen_by] == [480, 600]
    assert np.array_equal(seen_by[0], saved.labels)
    assert (seen_by[1][480:] == union.labels[480:]).mean() > 0.8


def test_networks_see_faces_as_they_are(varied):
    saved, new = varied
    trained = replace(saved, trained=True, thresholds=replace(saved.thresholds, strangers_per_face=None))
    unmerged = replace(trained, thresholds=ThresholdRule(None, None, None)).assign(new, Scores).labels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CentroidRule, "merge", lambda rule, labels, *_: labels)
        merging = trained.assign(new, Scores).labels
    assert np.array_equal(merging, unmerged)


def test_new_faces_join_a_gallery_of_noise(varied):
    saved, new = varied
    union = replace(saved, labels=np.full(480, -1)).assign(new, None)
    assert (union.labels[:480] == -1).all()
    assert union.labels[480:].min() == 0


def test_a_gallery_that_grows_from_a_handful_is_clustered_about_as_well_as_at_once():
    rng = np.random.default_rng(0)
    labels_true = rng.permutation(np.repeat(np.arange(150), [*([1] * 100), *([10] * 49), 300]))
    faces = rng.standard_normal((150, 64))[labels_true] + 0.5 * rng.standard_normal((len(labels_true), 64))
    features = normalise(faces.astype(np.float32), "faces")
    method = Unsupervised(strangers_per_face=0.0005, strangers_per_centroid=0.002, num_trials=1, seed=0)
    graph = build_knn(features[:30], 20)
    part = Part("first", features[:30], *graph, labels_true[:30])
    grown = SavedClustering.of(part, method(part.features, *graph), 20, trained=False)
    for batch in np.array_split(features[30:], 10):
        grown = grown.assign(batch, None)
    assert pairwise(Contingency.of(labels_true, grown.labels)).f_score > 0.95
