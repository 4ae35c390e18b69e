from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from lcde.configuration import build, compose_config
from lcde.data.gallery import Gallery
from lcde.data.knn import build_knn
from lcde.errors import InputError
from lcde.evaluation.results import evaluate
from lcde.methods.classical import ComponentsRule
from lcde.methods.lcde import LCDERule
from lcde.methods.method import Clustering, Details, Method, Rule
from lcde.methods.universal import UniversalRule
from lcde.methods.unsupervised import UnsupervisedRule

FIVE = Gallery("five", np.eye(5, dtype=np.float32), build_knn(np.eye(5, dtype=np.float32), 5))


@dataclass
class Fixed(Rule):
    """Always the same five faces."""

    density: np.ndarray | None = field(default_factory=lambda: np.array([0.5, 0.2, 0.9, 0.4, 0.1]))

    has_density = True

    def __call__(self, gallery, scores=None):
        return Clustering(np.array([0, 0, 1, 0, 2]), {}, Details(density=self.density))


@pytest.mark.parametrize(
    ("rule", "noise"),
    [
        (Fixed(), [False] * 5),
        (Fixed(None, min_cluster_size=2), [False, False, True, False, True]),
        (Fixed(min_cluster_size=2, density_threshold=0.4), [False, True, True, False, True]),
        (Fixed(density_threshold=0.4), [False, True, False, False, True]),
    ],
)
def test_noise_is_in_small_clusters_or_of_low_density(rule, noise):
    assert Method("fixed", rule).cluster(FIVE).noise.tolist() == noise


def test_a_density_threshold_needs_a_density():
    for rule in (LCDERule, UnsupervisedRule, UniversalRule):
        assert rule(density_threshold=0.5).density_threshold == 0.5
    with pytest.raises(InputError, match=r"density_threshold=0\.5 must be null: ComponentsRule has no density"):
        ComponentsRule(density_threshold=0.5)


def test_a_rule_that_asks_networks_needs_them():
    with pytest.raises(InputError, match="clustering=lcde needs trained networks"):
        Method("lcde", LCDERule())


@pytest.mark.parametrize("name", ["chinese_whispers", "components", "hac", "map_equation", "unsupervised"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("alike", [False, True])
def test_one_face_and_two_have_clusters_and_scores(name, count, alike):
    features = np.eye(2, 16, dtype=np.float32)[[0, 0 if alike else 1][:count]]
    config = compose_config("eval", [f"clustering={name}"]).clustering
    rule = build({**config, "threshold": 0.5} if "threshold" in config else config)
    gallery = Gallery("few", features, build_knn(features, count), features.argmax(axis=1))
    result = evaluate(gallery, Method(name, rule))
    assert result.clustering.labels.tolist() == gallery.labels_true.tolist()
    assert (result.pairwise.f_score, result.bcubed.f_score, result.nmi) == (1, 1, 1)


def test_scores_are_of_the_clusters_even_if_all_faces_are_noise():
    result = evaluate(replace(FIVE, labels_true=np.array([0, 0, 1, 0, 2])), Method("fixed", Fixed(min_cluster_size=9)))
    assert (result.num_noise, result.num_clusters, result.pairwise.f_score, result.bcubed.f_score) == (5, 3, 1, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_cluster_size": 0}, r"clustering\.min_cluster_size=0 must be a whole number of at least 1\."),
        ({"density_threshold": -1}, r"clustering\.density_threshold=-1 must be a number of at least 0 or null\."),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        Fixed(**settings)
