"""The synthetic benchmark: galleries with the statistics of face embeddings, generated in memory.

It models what makes real galleries hard: heavy-tailed identity sizes (a few identities hold most faces, many hold
one); variation that differs in size between identities but lies mostly in the same few directions (pose, age, light),
which a network can learn to discount and cosine similarity cannot; groups of look-alikes; blurred faces, which move
towards one common point whoever they show; and singletons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from lcde.data.datasets import Parts, part_names
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery
from lcde.data.knn import build_gallery, require_k
from lcde.errors import InputError
from lcde.settings import Within, check_settings

HELD_OUT_STREAM = 2**31  # beyond the positions in num_identities, which number the random streams of the other parts


@dataclass(frozen=True)
class SyntheticBenchmark:
    """A training part, a held-out part and evaluation parts of different identities in one embedding space.

    Parameters
    ----------
    k : int
        Neighbours, the face itself counted.
    feature_dim : int
        D.
    num_identities : mapping of str to int
        Identities of the training and evaluation parts by name, those of ``singleton_share`` not counted. The random
        numbers of a part depend on the position of its name among the sorted names.
    train_part : str
        Name of the training part.
    held_out_part : str
        Name of the part that stands for held-out identities.
    held_out_identities : int
        Identities of that part.
    parts : sequence of str
        Names of the evaluation parts.
    seed : int
        Of the embedding space and the galleries; the same numbers on every machine.
    size_exponent : float
        Identity sizes follow a Pareto law with this exponent, from 1 to ``max_size``.
    max_size : int
    family_share : float
        Share of identities that have look-alikes.
    likeness : float
        Cosine similarity of the look-alikes' mean faces.
    spread : float
        Median length of the variation within an identity, whose mean face has length 1.
    nuisance_dim : int
        Number of directions that all identities vary along, less than ``feature_dim``.
    nuisance_share : float
        Share of the variation (squared length) along them.
    blur : float
        How far a face of median quality moves towards the point of blurred faces.
    singleton_share : float
        Singletons added, relative to all other faces.
    graph_k : int, optional
        Without effect, as no graph is stored; accepted as every data set has it.
    """

    k: Annotated[int, Within(1)]
    feature_dim: Annotated[int, Within(1)]
    num_identities: Mapping[str, int]
    train_part: str
    held_out_part: str
    held_out_identities: Annotated[int, Within(1)]
    parts: Sequence[str]
    seed: Annotated[int, Within(0)]
    size_exponent: Annotated[float, Within(0.01)]
    max_size: Annotated[int, Within(1)]
    family_share: Annotated[float, Within(0, 1)]
    likeness: Annotated[float, Within(0, 1)]
    spread: Annotated[float, Within(0)]
    nuisance_dim: Annotated[int, Within(1)]
    nuisance_share: Annotated[float, Within(0, 1)]
    blur: Annotated[float, Within(0)]
    singleton_share: Annotated[float, Within(0)]
    graph_k: int | None = None

    def __post_init__(self) -> None:
        check_settings(self, "dataset.")
        if self.nuisance_dim >= self.feature_dim:
            limit = f"dataset.feature_dim={self.feature_dim}"
            raise InputError(f"dataset.nuisance_dim={self.nuisance_dim} must be less than {limit}.")
        for name, count in self.num_identities.items():
            if not isinstance(count, int) or count < 1:
                raise InputError(f"dataset.num_identities.{name}={count} must be a whole number of at least 1.")
        if self.train_part == self.held_out_part:
            raise InputError(f"dataset.train_part and dataset.held_out_part are both {self.train_part}; rename one.")
        known = sorted(self.num_identities)
        named = [
            ("train_part", self.train_part),
            *(("parts", name) for name in part_names(self.parts, self.held_out_part)),
        ]
        for key, name in named:
            if name not in known:
                raise InputError(f"dataset.{key} names {name!r}; dataset.num_identities has {known}.")

    def load(self, train: bool) -> Parts:
        """Generate the parts; see `lcde.data.datasets.Dataset`."""
        fit = self._gallery(self.train_part) if train else None
        validation = self._generate(self.held_out_part, self.held_out_identities, HELD_OUT_STREAM, held_out=True)
        return Parts(fit, validation, [self._gallery(str(name)) for name in self.parts])

    def _gallery(self, name: str) -> Gallery:
        return self._generate(name, self.num_identities[name], sorted(self.num_identities).index(name))

    def _generate(self, name: str, num_identities: int, stream: int, held_out: bool = False) -> Gallery:
        rng = np.random.default_rng([self.seed, stream])

        means = self.mean_faces(num_identities, rng)
        labels = self._identities(len(means), rng)
        singletons = round(self.singleton_share * len(labels))
        means = np.concatenate([means, _unit(rng.standard_normal((singletons, self.feature_dim)))])
        labels = np.concatenate([labels, np.arange(len(means) - singletons, len(means))])

        lengths = self.variation(len(means), rng)[labels]
        faces = self.photographs(means[labels], lengths, rng)

        order = rng.permutation(len(labels))
        features = normalise(faces[order].astype(np.float32), name)
        labels_true = np.unique(labels[order], return_inverse=True)[1].astype(np.int64)
        require_k(self.k, len(features), name)
        return build_gallery(name, features, labels_true, self.k, held_out)

    def mean_faces(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Unit mean faces (number of identities, D); look-alikes share the component of their family."""
        own = _unit(rng.standard_normal((count, self.feature_dim)))
        families = max(1, round(self.family_share * count / 4))  # of four look-alikes on average
        shared = _unit(rng.standard_normal((families, self.feature_dim)))[rng.integers(families, size=count)]
        likeness = np.where(rng.random(count) < self.family_share, self.likeness, 0.0)[:, None]
        return _unit(np.sqrt(likeness) * shared + np.sqrt(1 - likeness) * own)

    def variation(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Length of the variation within each identity: (number of identities,)."""
        return self.spread * rng.lognormal(0.0, 0.25, count)

    def photographs(self, means: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Faces (N, D), not of unit length, of people of ``means`` (N, D) whose variation has ``lengths`` (N,)."""
        space = np.random.default_rng(self.seed)
        directions = np.linalg.qr(space.standard_normal((self.feature_dim, self.nuisance_dim + 1)))[0].T
        nuisance, blurred = directions[:-1], directions[-1]
        along = rng.standard_normal((len(means), self.nuisance_dim)) @ nuisance / np.sqrt(self.nuisance_dim)
        across = rng.standard_normal(means.shape) / np.sqrt(self.feature_dim)
        varied = np.sqrt(self.nuisance_share) * along + np.sqrt(1 - self.nuisance_share) * across
        faces = _unit(means + lengths[:, None] * varied)
        blur = np.minimum(self.blur * rng.lognormal(0.0, 0.8, len(means)), 0.9)[:, None]
        noise = rng.standard_normal(faces.shape) / np.sqrt(self.feature_dim)
        return (1 - blur) * faces + blur * (blurred + noise)

    def _identities(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Identity of each face; sizes follow a Pareto law truncated to 1 … `max_size`."""
        lowest = self.max_size**-self.size_exponent
        sizes = (lowest + (1 - lowest) * rng.random(count)) ** (-1 / self.size_exponent)
        return np.repeat(np.arange(count), sizes.astype(int))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
