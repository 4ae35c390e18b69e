"""The synthetic benchmark: galleries shaped like face embeddings, made on the spot, the embedded default data set.

What makes real galleries hard is in it: a few identities hold most faces and many hold one; every identity varies by
its own amount, and all of them along the same few directions (pose, age, light), which a network can learn to
discount and cosine similarity cannot; families of look-alikes; blurred faces, drawn to one common point whoever they
show; and strangers seen once.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lcde.data.formats import normalise
from lcde.data.knn import build_knn, require_k
from lcde.data.part import Part
from lcde.errors import InputError


@dataclass(frozen=True)
class SyntheticBenchmark:
    """One training part and evaluation parts of other identities, all from one embedding space.

    k, feature_dim:       neighbours counting the face itself, and width of the embeddings
    num_identities:       identities of each part, by part name; `train_part` names the one to train on
    parts:                names of the evaluation parts
    seed:                 of the space and the galleries; the same numbers on every machine
    size_exponent:        identity sizes follow a Pareto law with this exponent, from 1 to `max_size`
    family_share:         share of identities that have look-alikes
    likeness:             cosine similarity of the look-alikes' mean faces
    spread:               median length of the variation within an identity, whose mean face has length 1
    nuisance_dim:         number of directions that all identities vary along
    nuisance_share:       share of the variation (squared length) along them
    blur:                 how far a face of median quality is drawn to the blurred face
    stray_share:          share of faces that are strangers seen once
    """

    k: int
    feature_dim: int
    num_identities: dict[str, int]
    train_part: str
    parts: Sequence[str]
    seed: int
    size_exponent: float
    max_size: int
    family_share: float
    likeness: float
    spread: float
    nuisance_dim: int
    nuisance_share: float
    blur: float
    stray_share: float

    def has_train(self) -> bool:
        return True

    def load(self, train: bool) -> tuple[Part | None, list[Part]]:
        for name in [self.train_part, *self.parts]:
            if name not in self.num_identities:
                raise InputError(
                    f"dataset.parts names {name!r}; dataset.num_identities has {sorted(self.num_identities)}."
                )
        return self._make(self.train_part) if train else None, [self._make(name) for name in self.parts]

    def _make(self, name: str) -> Part:
        space = np.random.default_rng(self.seed)
        directions = np.linalg.qr(space.standard_normal((self.feature_dim, self.nuisance_dim + 1)))[0].T
        nuisance, blurred = directions[:-1], directions[-1]
        rng = np.random.default_rng([self.seed, sorted(self.num_identities).index(name)])

        means = self._mean_faces(self.num_identities[name], rng)
        labels = self._identities(len(means), rng)
        strays = round(self.stray_share * len(labels))
        means = np.concatenate([means, _unit(rng.standard_normal((strays, self.feature_dim)))])
        labels = np.concatenate([labels, np.arange(len(means) - strays, len(means))])

        length = self.spread * rng.lognormal(0.0, 0.25, len(means))[labels, None]
        along = rng.standard_normal((len(labels), self.nuisance_dim)) @ nuisance / np.sqrt(self.nuisance_dim)
        across = rng.standard_normal((len(labels), self.feature_dim)) / np.sqrt(self.feature_dim)
        varied = np.sqrt(self.nuisance_share) * along + np.sqrt(1 - self.nuisance_share) * across
        faces = _unit(means[labels] + length * varied)

        blur = np.minimum(self.blur * rng.lognormal(0.0, 0.8, len(labels)), 0.9)[:, None]
        noise = rng.standard_normal(faces.shape) / np.sqrt(self.feature_dim)
        faces = (1 - blur) * faces + blur * (blurred + noise)

        order = rng.permutation(len(labels))
        features = normalise(faces[order].astype(np.float32), name)
        labels_true = np.unique(labels[order], return_inverse=True)[1].astype(np.int64)
        require_k(self.k, len(features), name)
        start = time.perf_counter()
        indices, similarities = build_knn(features, self.k)
        return Part(name, features, indices, similarities, labels_true, time.perf_counter() - start)

    def _mean_faces(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Unit mean faces (I, D); look-alikes share a family's face."""
        own = _unit(rng.standard_normal((count, self.feature_dim)))
        families = max(1, round(self.family_share * count / 4))  # four look-alikes a family on average
        shared = _unit(rng.standard_normal((families, self.feature_dim)))[rng.integers(families, size=count)]
        likeness = np.where(rng.random(count) < self.family_share, self.likeness, 0.0)[:, None]
        return _unit(np.sqrt(likeness) * shared + np.sqrt(1 - likeness) * own)

    def _identities(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Identity of each face: sizes from 1 to `max_size` by a truncated Pareto law."""
        lowest = self.max_size**-self.size_exponent
        sizes = (lowest + (1 - lowest) * rng.random(count)) ** (-1 / self.size_exponent)
        return np.repeat(np.arange(count), sizes.astype(int))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
