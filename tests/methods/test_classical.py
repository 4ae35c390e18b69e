import importlib.util

import numpy as np
import pytest

from lcde.data.formats import normalise
from lcde.data.gallery import Gallery, KNNGraph
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.methods.classical import ComponentsRule, InfomapRule, MapEquationRule, choose_threshold


@pytest.fixture
def gallery():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 10)
    faces = rng.standard_normal((12, 16))[labels] + 0.3 * rng.standard_normal((120, 16))
    features = normalise(faces.astype(np.float32), "faces")
    return Gallery("test", features, build_knn(features, 8), labels)


@pytest.fixture(params=[ComponentsRule, MapEquationRule, InfomapRule])
def kind(request):
    if request.param is InfomapRule:
        pytest.importorskip("infomap")
    return request.param


def test_well_separated_identities_are_found(kind, gallery):
    threshold = choose_threshold(kind(), gallery)
    result = kind(threshold)(gallery)
    assert result.labels.dtype == np.int64
    assert np.array_equal(np.unique(result.labels), np.arange(12))
    assert len(set(zip(result.labels.tolist(), gallery.labels_true.tolist(), strict=True))) == 12
    assert set(result.seconds) == {"weights", "edges", "components"}
    assert result.details.similarity_threshold == threshold
    found = {tuple(edge) for edge in result.details.edges_similar.tolist()}
    assert found == {
        (min(face, other), max(face, other))
        for face, row in enumerate(gallery.graph.indices.tolist())
        for other, similarity in zip(row[1:], gallery.graph.similarities[face, 1:], strict=True)
        if similarity >= threshold
    }


def test_no_edge_means_singletons(kind, gallery):
    assert np.array_equal(np.sort(kind(1.0)(gallery).labels), np.arange(len(gallery)))


def test_components_join_at_exactly_the_threshold():
    graph = KNNGraph(
        np.array([[0, 1], [1, 0], [2, 1]], dtype=np.int32),
        np.array([[1, 0.5], [1, 0.5], [1, 0.25]], dtype=np.float32),
    )
    gallery = Gallery("test", np.eye(3, dtype=np.float32), graph)
    assert ComponentsRule(0.5)(gallery).labels.tolist() == [0, 0, 1]
    assert ComponentsRule(0.25)(gallery).labels.tolist() == [0, 0, 0]


def test_wrong_settings_are_named(gallery):
    with pytest.raises(InputError, match=r"clustering\.threshold=2 must be a number from -1 to 1 or null"):
        ComponentsRule(2)
    with pytest.raises(InputError, match=r"clustering\.num_trials=0 must be a whole number of at least 1"):
        MapEquationRule(0.5, num_trials=0)
    with pytest.raises(InputError, match=r"clustering\.threshold=null needs held-out identities"):
        ComponentsRule()(gallery)


def test_infomap_says_which_package_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package infomap; pip install"):
        InfomapRule(0.5)
    MapEquationRule(0.5)
