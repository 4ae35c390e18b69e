"""A small gallery and clusterings of it whose scores follow from the cosine similarity."""

from dataclasses import replace

import numpy as np
import pytest

from lcde.evaluation.results import Result, score
from lcde.methods.lcde import LCDERule


class CosineScores:
    """Connectivity is the similarity; the probability of an edge rises with it."""

    def __init__(self, gallery):
        self.gallery = gallery

    def connectivity(self, first_row=0):
        return self.gallery.graph.similarities[first_row:].clip(0, 1)

    def edge_probability(self, edges):
        return np.prod(self.gallery.features[edges], axis=1).sum(axis=1).clip(0, 1) ** 4


@pytest.fixture(scope="package")
def gallery(make_gallery):
    return replace(make_gallery(0, num_faces=120, k=8), name="faces")


@pytest.fixture(scope="package")
def cluster():
    def cluster(gallery, **settings):
        return LCDERule(**settings)(gallery, CosineScores(gallery))

    return cluster


@pytest.fixture(scope="package")
def result_of():
    def result_of(gallery, clustering, method="lcde", baseline=False) -> Result:
        seconds = {"clustering": 1.0, "total": 1.25}
        result = score(gallery.name, method, clustering, seconds, gallery.labels_true)
        return replace(result, held_out=gallery.held_out, baseline=baseline)

    return result_of
