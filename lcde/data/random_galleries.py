"""Random galleries: an endless stream of galleries as unlike each other as those that people bring.

A gallery draws how many photographs each person has, how much embeddings of one person vary and along how many
directions, how alike different people are, and what else happens to real ones: several looks of a person, blurred
photographs, frames of videos, copies, an offset that all faces share, wrong labels. Only similarities count, so
covariances are diagonal: a rotation would change none.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from lcde.data.datasets import Parts
from lcde.data.formats import normalise
from lcde.data.gallery import Gallery
from lcde.data.knn import build_gallery
from lcde.errors import InputError
from lcde.settings import Within, check_settings

HELD_OUT, TRAIN, VALIDATION = 2**40, 2**41, 2**42  # numbers from which galleries are for these purposes
CHOICE = 8  # galleries of which the one with most identities of two faces or more is held out
SIZES = ("few", "pareto", "lognormal", "dirichlet", "family", "alone")
SHARES = (0.18, 0.21, 0.23, 0.12, 0.14, 0.12)  # of galleries whose identities have these sizes
PAIRED = 1_200  # faces whose pairs tell how far genuine and impostor pairs are apart

Range = tuple[float, float]  # lowest and highest value


@dataclass(frozen=True)
class RandomGalleries:
    """Galleries by number; the same number gives the same gallery on every machine.

    Attributes
    ----------
    k : int
        Neighbours, the face itself counted; of fewer faces, all are neighbours.
    feature_dim : int
        D.
    parts : int
        Galleries to evaluate.
    seed : int
        Other seeds give other galleries.
    num_faces : range
        Log-uniform.
    between_dim, within_dim : range
        Participation ratios of the covariance of identities and of that within an identity, log-uniform: how many
        directions they have. Look-alikes lower the former.
    variation : range
        Variance within an identity, relative to that between identities; log-uniform.
    separation : range
        Galleries of other d', the difference of mean genuine and impostor similarity in standard deviations of the
        latter, are drawn again.
    likeness : range
        Cosine similarity of look-alikes' mean faces, at each of up to `levels` levels.
    levels : int
    blur : range
        How far blurred faces move towards one common point.
    offset : range
        Length of what all faces share; log-uniform. Identities have length 1.
    wrong : range
        Share of wrong labels.
    graph_k : int, optional
        Without effect, as no graph is stored; accepted as every data set has it.
    """

    k: Annotated[int, Within(1)]
    feature_dim: Annotated[int, Within(1)]
    parts: Annotated[int, Within(0)]
    seed: Annotated[int, Within(0)]
    num_faces: Range
    between_dim: Range
    within_dim: Range
    variation: Range
    separation: Range
    likeness: Range
    levels: int
    blur: Range
    offset: Range
    wrong: Range
    graph_k: int | None = None

    def __post_init__(self) -> None:
        check_settings(self, "dataset.")
        for name in ("between_dim", "within_dim"):
            low, high = getattr(self, name)
            if not 1 <= low <= high < self.feature_dim:
                span = f"dataset.{name}=[{low}, {high}]"
                raise InputError(f"{span} must lie between 1 and dataset.feature_dim={self.feature_dim}.")

    def load(self, train: bool) -> Parts:
        """The first ``parts`` galleries; see `lcde.data.datasets.Dataset`."""
        # The F-scores of a gallery whose faces are nearly all alone would tell nothing.
        several = {n: (np.bincount(self.draw(n)[1]) > 1).sum() for n in range(HELD_OUT, HELD_OUT + CHOICE)}
        held_out = self._gallery("random_held_out", max(several, key=lambda n: several[n]), held_out=True)
        fit = self._gallery("random_train", TRAIN) if train else None
        return Parts(fit, held_out, [self._gallery(f"random{n}", n) for n in range(self.parts)])

    def draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The gallery of that ``number``: unit features (N, D) float32 and identities (N,) int64 from 0."""
        rng = np.random.default_rng([self.seed, number])
        while True:
            features, labels = self._faces(round(log_uniform(rng, self.num_faces)), rng)
            if rng.random() < 0.12:
                features, labels = frames(features, labels, rng)
            if rng.random() < 0.03:
                copies = rng.integers(len(labels), size=len(labels))
                features, labels = features[copies], labels[copies]
            features = normalise(features.astype(np.float32), f"random gallery {number}")
            if self._separable(features, labels, rng):
                break
        if rng.random() < 0.3:
            labels = np.where(rng.random(len(labels)) < rng.uniform(*self.wrong), rng.permutation(labels), labels)
        order = rng.permutation(len(labels))
        return features[order], np.unique(labels[order], return_inverse=True)[1].astype(np.int64)

    def _gallery(self, name: str, number: int, held_out: bool = False) -> Gallery:
        features, labels = self.draw(number)
        return build_gallery(name, features, labels, min(self.k, len(features)), held_out)

    def _faces(self, num_faces: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, D), not normalised, and identities (N,) from 0."""
        dim = self.feature_dim
        sizes = identity_sizes(num_faces, rng)
        labels = np.repeat(np.arange(len(sizes)), sizes)[:num_faces]
        within = spectrum(dim, log_uniform(rng, self.within_dim), rng)
        # People differ in the directions in which one person varies most, but not in the same order.
        place = np.arange(dim) + log_uniform(rng, (1.5, 0.4 * dim)) * rng.normal(size=dim)
        within = within[place.argsort().argsort()]
        length = np.sqrt(log_uniform(rng, self.variation))
        length = length * np.exp(rng.uniform(0, 0.2) * rng.normal(size=labels[-1] + 1))
        quality = np.exp(rng.uniform(0, 0.5) * rng.normal(size=num_faces))  # higher is worse

        faces, rest = self._identities(labels[-1] + 1, rng)[labels], 1.0
        if rng.random() < 0.5:
            looks, share = int(rng.integers(2, 7)), rng.uniform(0.2, 0.8)
            look = np.minimum(rng.geometric(rng.uniform(0.2, 0.8), num_faces) - 1, looks - 1)
            number = np.unique(labels * looks + look, return_inverse=True)[1]
            faces += share * length[labels, None] * _normal(rng, within, number.max() + 1)[number]
            rest = np.sqrt(1 - 0.7 * share**2)
        noise = _normal(rng, within, num_faces)
        if rng.random() < 0.5:  # each person varies in directions of its own
            noise *= np.exp(rng.uniform(0, 0.4) * rng.normal(size=(labels[-1] + 1, dim)))[labels]
        if rng.random() < 0.4:  # heavy tails
            noise /= np.sqrt(rng.chisquare(rng.uniform(4, 12), size=(num_faces, 1)) / 6)
        faces += (rest * length[labels] * quality)[:, None] * noise
        if rng.random() < 0.5:
            blurred = (quality - rng.uniform(0.8, 1.3)).clip(0, 2)
            faces += (rng.uniform(*self.blur) * blurred)[:, None] * random_direction(rng, dim)
        if rng.random() < 0.7:
            faces += log_uniform(rng, self.offset) * random_direction(rng, dim)
        return faces, labels

    def _identities(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Mean faces (count, D) of length 1, or of about that length."""
        between = spectrum(self.feature_dim, log_uniform(rng, self.between_dim), rng)
        means = _normal(rng, between, count)
        for _ in range(rng.integers(self.levels + 1)):
            groups = round(log_uniform(rng, (2, max(3, count / 1.5))))
            shared = _normal(rng, between, groups)[rng.integers(groups, size=count)]
            likeness = np.where(rng.random(count) < rng.uniform(0.2, 1), rng.uniform(*self.likeness), 0)[:, None]
            means = np.sqrt(likeness) * shared + np.sqrt(1 - likeness) * means
        if rng.random() < 0.6:
            return means / np.linalg.norm(means, axis=1, keepdims=True)
        return means * np.exp(rng.uniform(0, 0.25) * rng.normal(size=(count, 1)))

    def _separable(self, features: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> bool:
        """Whether d' lies in the range; galleries with hardly any genuine or impostor pairs pass."""
        some = rng.permutation(len(labels))[:PAIRED]
        faces = features[some] - features.mean(axis=0) if len(np.unique(labels)) > 3 else features[some]
        faces /= np.maximum(np.linalg.norm(faces, axis=1, keepdims=True), 1e-9)
        first, second = np.triu_indices(len(some), 1)
        same, pairs = labels[some][first] == labels[some][second], (faces @ faces.T)[first, second]
        if min(same.sum(), (~same).sum()) < 5:
            return True
        separation = (pairs[same].mean() - pairs[~same].mean()) / pairs[~same].std()
        return bool(self.separation[0] < separation < self.separation[1])


def identity_sizes(num_faces: int, rng: np.random.Generator) -> np.ndarray:
    """Photographs of each identity, ``num_faces`` or a few more in all."""
    sizes: np.ndarray
    kind = rng.choice(SIZES, p=SHARES)
    if kind == "few":
        sizes = num_faces * rng.dirichlet(np.full(rng.integers(1, 5), rng.uniform(1, 6)))
    elif kind == "pareto":
        sizes = rng.random(num_faces) ** (-1 / rng.uniform(0.6, 2.5))
    elif kind == "lognormal":
        sizes = log_uniform(rng, (1.5, 120)) * np.exp(rng.uniform(0.1, 1.2) * rng.normal(size=num_faces))
    elif kind == "dirichlet":
        sizes = num_faces * rng.dirichlet(np.full(rng.integers(4, 60), rng.uniform(0.3, 5)))
    elif kind == "family":  # some people with many photographs, everyone else with one
        family = rng.dirichlet(np.full(rng.integers(1, 9), rng.uniform(0.5, 5)))
        sizes = np.append(num_faces * rng.uniform(0.2, 0.9) * family, np.ones(num_faces))
    else:
        sizes = 1.0 + (rng.random(num_faces) < rng.uniform(0, 0.3))
    whole = np.ceil(np.clip(sizes, 1e-9, num_faces)).astype(np.int64)
    return whole[: 1 + np.searchsorted(np.cumsum(whole), num_faces)]


def spectrum(dim: int, participation: float, rng: np.random.Generator) -> np.ndarray:
    """Eigenvalues (D,) of sum 1, exponential or a power law, whose participation ratio (Σλ)² / Σλ² is that one."""
    place, power = np.arange(dim), rng.uniform(1, 2.5)
    exponential = rng.random() < 0.5
    low, high = 1e-3, 1e3 * dim
    for _ in range(40):  # bisection; the ratio grows with the scale
        scale = np.sqrt(low * high)
        values = np.exp(-place / scale) if exponential else (1 + place / scale) ** -power
        low, high = (scale, high) if values.sum() ** 2 / (values**2).sum() < participation else (low, scale)
    return values / values.sum()


def frames(features: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Frames of videos: some of the faces, each several times with little noise."""
    frames = int(rng.integers(3, 20))
    shown = np.repeat(rng.permutation(len(labels))[: max(2, len(labels) // frames)], frames)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    noise = rng.uniform(0.05, 0.45) * (unit - unit.mean(axis=0)).std() * rng.normal(size=(len(shown), unit.shape[1]))
    return unit[shown] + noise, labels[shown]


def _normal(rng: np.random.Generator, variances: np.ndarray, count: int) -> np.ndarray:
    return rng.normal(size=(count, len(variances))) * np.sqrt(variances)


def random_direction(rng: np.random.Generator, dim: int) -> np.ndarray:
    """A unit vector (D,), all directions alike."""
    direction = rng.normal(size=dim)
    return direction / np.linalg.norm(direction)


def log_uniform(rng: np.random.Generator, span: Range) -> float:
    """A number within ``span`` whose logarithm is uniformly distributed."""
    return float(np.exp(rng.uniform(*np.log(span))))
