"""Galleries made of real ones: other people and numbers of photographs, as embedded by another network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lcde.data.formats import normalise
from lcde.data.random_galleries import frames, identity_sizes, log_uniform, random_direction

Embeddings = tuple[np.ndarray, np.ndarray]  # features (N, D) and identities (N,)


@dataclass(frozen=True)
class _Source:
    """One real gallery: centred features (N, D), identities (N,), mean faces (I, D), eigenvectors (D, D) and values."""

    features: np.ndarray
    labels: np.ndarray
    means: np.ndarray
    vectors: np.ndarray
    variances: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray) -> "_Source":
        labels = np.unique(labels, return_inverse=True)[1]
        unit = normalise(features.astype(np.float32), "a real gallery")
        unit = unit - unit.mean(axis=0)
        means = np.zeros((labels.max() + 1, unit.shape[1]), dtype=np.float32)
        np.add.at(means, labels, unit)
        means /= np.bincount(labels)[:, None]
        variances, vectors = np.linalg.eigh(unit.T @ unit / len(unit))
        return cls(unit, labels, means, vectors, np.maximum(variances, 1e-9))

    def draw_means(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Mean faces (count, D) at random, with the covariance of the real ones."""
        return rng.normal(size=(count, len(self.means))) @ self.means / np.sqrt(len(self.means))


class ResampledGalleries:
    """Galleries by number, each drawn from one real gallery.

    People and their numbers of photographs are drawn as in `RandomGalleries`. Then the embedding is changed at random:
    how much one person's photographs vary, look-alikes, a projection to fewer dimensions, a flatter or steeper
    spectrum, noise, and what all faces share. In some galleries the mean faces are drawn at random, too, from the
    covariance of the real ones, so that there are more people than the source has.

    Parameters
    ----------
    sources : sequence of (features, labels)
        Features (N, D) of any length, and identities (N,).
    seed : int
    """

    def __init__(self, sources: Sequence[Embeddings], seed: int) -> None:
        self.seed, self.sources = seed, [_Source.of(*source) for source in sources]

    def draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The gallery of that ``number``: unit features (N, D) float32 and identities (N,) int64 from 0."""
        rng = np.random.default_rng([self.seed, number, 2])
        source = self.sources[rng.integers(len(self.sources))]
        sizes = identity_sizes(round(log_uniform(rng, (20, min(3500, len(source.labels))))), rng)
        people_drawn = bool(rng.random() < 0.35)
        rows, labels = _photographs(source, sizes, repeat=people_drawn, rng=rng)
        of_person, there = source.labels[rows], np.bincount(source.labels)
        means, own = source.means[of_person], source.features[rows] - source.means[of_person]
        if people_drawn:
            drawn = source.draw_means(labels[-1] + 1, rng)
            sign = rng.choice([-1, 1], size=(labels[-1] + 1, 1))
            scale = np.sqrt(there / np.maximum(there - 1, 1))[of_person, None]  # a mean takes variance off its faces
            means, own = drawn[labels], own * sign[labels] * scale
        faces = _other_embedder(source, means, own, labels, rng)
        if rng.random() < 0.12:
            faces, labels = frames(faces, labels, rng)
        faces = normalise(faces.astype(np.float32), f"resampled gallery {number}")
        order = rng.permutation(len(labels))
        return faces[order], np.unique(labels[order], return_inverse=True)[1].astype(np.int64)


def _photographs(
    source: _Source, sizes: np.ndarray, repeat: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of the source and identities (n,) from 0, ascending: ``sizes`` photographs each, or all there are.

    With ``repeat``, people who have two photographs or more may stand for several identities.
    """
    there = np.bincount(source.labels)
    people = np.flatnonzero(there > 1) if repeat else np.arange(len(there))
    order = rng.permutation(people)
    if rng.random() < 0.5:  # large identities of people with many photographs, about
        order = order[np.argsort(-there[order] * rng.lognormal(size=len(order)), kind="stable")]
        sizes = -np.sort(-sizes)
    if repeat:
        order = order[np.arange(len(sizes)) % len(order)]
    by_person = np.split(np.argsort(source.labels, kind="stable"), np.cumsum(there)[:-1])
    rows = [rng.permutation(by_person[person])[:size] for person, size in zip(order, sizes, strict=False)]
    return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(own) for own in rows])


def _other_embedder(
    source: _Source, means: np.ndarray, own: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Faces (n, D') of identities' ``means`` (n, D) and what is ``own`` (n, D) to each, changed at random."""
    dim, typical = means.shape[1], float(np.sqrt((source.means**2).sum(axis=1).mean()))
    if rng.random() < 0.3:  # look-alikes
        groups = round(log_uniform(rng, (2, max(3, (labels[-1] + 1) / 1.5))))
        centres = source.draw_means(groups, rng)
        of_group, likeness = rng.integers(groups, size=labels[-1] + 1), rng.uniform(0.05, 0.7)
        means = np.sqrt(1 - likeness) * means + np.sqrt(likeness) * centres[of_group][labels]
    if rng.random() < 0.6:
        own = own * log_uniform(rng, (0.65, 1.35))
    faces = means + own
    if rng.random() < 0.4:  # another spectrum
        power = rng.uniform(-0.25, 0.25)
        faces = (faces @ source.vectors) * (source.variances / source.variances.max()) ** power
    if rng.random() < 0.4:
        quality = rng.uniform(0, 0.6) * np.exp(rng.uniform(0, 0.6) * rng.normal(size=(len(faces), 1)))
        faces = faces + quality * typical / np.sqrt(dim) * rng.normal(size=faces.shape)
    if rng.random() < 0.5:
        width = round(log_uniform(rng, (max(32, dim / 4), dim)))
        faces = faces @ rng.normal(size=(dim, width)) / np.sqrt(width)
    length = np.sqrt((faces**2).sum(axis=1).mean())
    direction = random_direction(rng, faces.shape[1])
    return faces + log_uniform(rng, (0.02, 3)) * length * direction
