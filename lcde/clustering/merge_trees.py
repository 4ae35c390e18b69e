"""Whether two clusters of a gallery are one identity, by trees that were trained on other galleries.

Few clusters do not tell how similar impostors are: other galleries do. Shape letters: C clusters, D feature dimension,
P pairs of clusters, T trees.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import log_ndtr

from lcde.clustering.impostors import Impostors
from lcde.clustering.likelihood import TwoCovariance
from lcde.errors import InputError
from lcde.files import read_array, readable, write_atomically

Part = Literal["few", "many"]
SHIPPED = Path(__file__).with_name("merge_trees.npz")
FEW_CLUSTERS = 50  # as many, or fewer, merge by the trees for few
MANY_CLUSTERS = 500  # up to as many by those for many, if the merges are certain
CERTAIN = 0.5  # mean log-odds, at the start, of the clusters that these join
TYPICAL_FACES = 2  # weight, in faces, of the gallery's similarity within clusters beside a cluster's own
LEAST_SPREAD = 0.25  # of the impostors of one cluster, relative to those of the gallery
TO_MEDIAN = 0.6745  # standard deviations of a normal distribution from its first quartile to its median
WRONG = 0.1  # pairs of impostors that average linkage lets merge
MOST_LEAVES = 16  # of a tree
LOWEST_BIT = np.array([0] + [(bits & -bits).bit_length() - 1 for bits in range(1, 1 << MOST_LEAVES)], dtype=np.uint8)
LARGEST, LARGEST_LOG = 60, 25  # values, and logarithms of numbers of pairs, are clipped to these

# What describes a pair, and whether the probability of one identity rises (1) or falls (-1) with it.
COLUMNS = {
    "similarity": 1,  # mean over pairs of faces, in standard deviations above that of impostors
    "similarity, upper": 0,  # the same by the upper quantiles
    "position": 1,  # from 0 at impostors to 1 at the similarity within both clusters
    "within": 0,  # similarity within both clusters
    "within, lower": 0,
    "smaller": 0,  # logarithms of the numbers of faces
    "larger": 0,
    "likelihood": 1,  # log-likelihood ratio of one identity and two
    "likelihood, posterior": 1,  # less the logarithm of the number of pairs
    "above average linkage": 1,  # similarity above that at which average linkage would merge
    "centroids": 1,  # similarity of centroids
    "above centroids": 1,  # and above that at which these would merge
    "gap, smaller": 1,  # similarity above that of the most similar other candidate of each
    "gap, larger": 1,
    "own, lower": 1,  # in standard deviations of each cluster's own similarities to others
    "own, upper": 1,
    "spread": 0,  # of impostors
    "upper mean": 0,
    "upper spread": 0,
    "rank": -1,  # among the candidates of either
    "expected": -1,  # logarithm of the number of impostor pairs expected at this similarity or above
    "expected, upper": -1,
    "false": -1,  # the same, relative to the number of pairs that are there
    "false, upper": -1,
    "expected, own": -1,
}


@dataclass(frozen=True)
class MergeTrees:
    """Gradient-boosted trees: log-odds that a pair of clusters is one identity.

    Attributes
    ----------
    column, threshold : (T, M) int16, float64
        Nodes with a ``column`` of -1 are leaves; at the others, values of at most ``threshold`` go left. A left subtree
        follows its node, and is followed by the right one.
    left, right : (T, M) int16
    value : (T, M) float32
        Of the leaves.
    intercept : () float64
    """

    column: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    intercept: np.ndarray

    @classmethod
    @cache
    def read(cls, path: str, part: Part) -> "MergeTrees":
        """Trees for few or for many clusters from a file, or those that come with lcde: "shipped".

        Raises
        ------
        InputError
            On a file that is missing or holds something else.
        """
        file = SHIPPED if path == "shipped" else Path(path)
        with readable(file, "merge trees"), zipfile.ZipFile(file) as archive:
            trees = cls(*(read_array(archive, f"{part}.{each.name}") for each in fields(cls)))
            inner, node = trees.column >= 0, np.arange(trees.column.shape[1])
            follow = (trees.left == node + 1) & (trees.right > trees.left) & (trees.right < len(node))
            if trees.column.max() >= len(COLUMNS) or not follow[inner].all() or inner.sum(axis=1).max() >= MOST_LEAVES:
                raise InputError(f"{path} holds trees of another version of lcde; train them again.")
        return trees

    def log_odds(self, described: np.ndarray) -> np.ndarray:
        """Log-odds (P,) of pairs by what describes them, (P, columns) float32.

        Of each tree, a pair keeps the leaves that it may still reach, as bits: where its value goes right, those of the
        left subtree are out. Of those that remain at last, the leftmost one is reached.

        References
        ----------
        Lucchese et al.: QuickScorer. SIGIR 2015.
        """
        columns, log_odds = np.ascontiguousarray(described.T), np.full(len(described), self.intercept)
        for nodes, values in self._nodes:
            reachable = np.full(len(described), (1 << MOST_LEAVES) - 1, dtype=np.uint16)
            for column, threshold, left in nodes:
                reachable &= ~((columns[column] > threshold) * left)
            log_odds += values[LOWEST_BIT[reachable]]
        return log_odds

    @cached_property
    def _nodes(self) -> list[tuple[list[tuple[int, np.float32, np.uint16]], np.ndarray]]:
        """Of each tree: column, threshold and bits of the left leaves of the inner nodes; values of the leaves."""
        threshold = self.threshold.astype(np.float32)  # rounded down, so that float32 values compare as before
        threshold = np.where(threshold > self.threshold, np.nextafter(threshold, np.float32(-np.inf)), threshold)
        trees = []
        for tree, column in enumerate(self.column):
            inner, leaf = np.flatnonzero(column >= 0), column < 0
            leaves = [1 << int(number) for number in np.cumsum(leaf) - leaf]
            for node in inner[::-1]:
                leaves[node] = leaves[self.left[tree, node]] | leaves[self.right[tree, node]]
            left = (np.uint16(leaves[self.left[tree, node]]) for node in inner)
            nodes = list(zip(column[inner], threshold[tree, inner], left, strict=True))
            trees.append((nodes, self.value[tree, leaf]))
        return trees


def write_trees(path: Path, trees: Mapping[Part, MergeTrees]) -> None:
    """Write the trees for few and for many clusters to one file, which `MergeTrees.read` reads."""
    arrays = {
        f"{part}.{each.name}": getattr(of_part, each.name)
        for part, of_part in trees.items()
        for each in fields(of_part)
    }
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def describe_pairs(
    sums: np.ndarray,
    sizes: np.ndarray,
    pairs: np.ndarray,
    impostors: Impostors,
    threshold: float,
    model: TwoCovariance | None,
) -> np.ndarray:
    """What tells whether ``pairs`` of clusters are one identity: (P, columns) float32, as in `COLUMNS`.

    Parameters
    ----------
    sums : (C, D) float32
        Of the whitened unit faces of each cluster.
    sizes : (C,)
        Faces.
    pairs : (P, 2) int64
        Candidates.
    impostors : Impostors
    threshold : float
        Similarity of centroids above which they merge.
    model : TwoCovariance, optional
        By clusters that are parts of these.
    """
    (first, second), count = pairs.T, len(sizes)
    squares = np.einsum("cd,cd->c", sums, sums).astype(np.float64)
    product = np.einsum("pd,pd->p", sums[first], sums[second]).astype(np.float64)
    smaller, larger = (choose(sizes[first], sizes[second]) for choose in (np.minimum, np.maximum))
    similarity, centroids = product / (smaller * larger), product / np.sqrt(squares[first] * squares[second] + 1e-12)
    within = _within(squares, sizes, impostors.mean)
    within_both, within_lower = (within[first] + within[second]) / 2, np.minimum(within[first], within[second])
    num_pairs = max(count * (count - 1) / 2, 1)
    linkage = impostors.of_pairs(num_pairs, WRONG)
    gaps, rank = _beside_others(similarity, pairs, count, impostors.mean)
    own = _own_scale(sums / sizes[:, None].astype(np.float32), impostors)
    own_z = np.stack([(similarity - own[0][ends]) / own[1][ends] for ends in (first, second)])
    ratio = np.zeros(len(pairs))
    if model is not None:
        moved = model.moved(sums, sizes)
        evidence = model.evidence(moved, sizes)
        together = model.evidence(moved[first] + moved[second], sizes[first] + sizes[second])
        ratio = together - evidence[first] - evidence[second]

    def z(values: np.ndarray) -> np.ndarray:
        return (values - impostors.mean) / impostors.spread

    upper = (similarity - impostors.upper_mean) / impostors.upper_spread
    there = np.log1p(np.argsort(np.argsort(-similarity, kind="stable"), kind="stable"))
    expected, expected_upper = (np.log(num_pairs) + log_ndtr(-values) for values in (z(similarity), upper))
    of_pairs = [
        *(z(similarity), upper, (similarity - impostors.mean) / np.maximum(within_both - impostors.mean, 1e-3)),
        *(z(within_both), z(within_lower), np.log(smaller), np.log(larger)),
        *(_signed_log(ratio), _signed_log(ratio - np.log(num_pairs)), (similarity - linkage) / impostors.spread),
        *(z(centroids), (centroids - threshold) / impostors.spread, *(np.sort(gaps, axis=0) / impostors.spread)),
        *np.sort(own_z, axis=0),
    ]
    relative = (impostors.upper_mean - impostors.mean, impostors.upper_spread)
    of_gallery = [impostors.spread, *(value / impostors.spread for value in relative)]
    numbers = [expected, expected_upper, expected - there, expected_upper - there]
    numbers.append(np.log(count) + log_ndtr(-own_z.min(axis=0)))
    clipped = [values.clip(-LARGEST_LOG, LARGEST_LOG) for values in numbers]
    columns = [*of_pairs, *(np.full(len(pairs), value) for value in of_gallery), rank, *clipped]
    return np.column_stack(columns).clip(-LARGEST, LARGEST).astype(np.float32)


def _within(squares: np.ndarray, sizes: np.ndarray, impostor_mean: float) -> np.ndarray:
    """Mean similarity (C,) of two faces of each cluster, that of small ones drawn to that of the gallery."""
    many, others = sizes > 1, np.maximum(sizes - 1, 0)
    own = np.where(many, (squares - sizes) / np.maximum(sizes * others, 1), 0)
    typical = np.average(own[many], weights=np.sqrt(sizes[many])) if many.any() else max(0.9, impostor_mean + 0.01)
    return (others * own + TYPICAL_FACES * typical) / (others + TYPICAL_FACES)


def _beside_others(
    similarity: np.ndarray, pairs: np.ndarray, count: int, impostor_mean: float
) -> tuple[np.ndarray, np.ndarray]:
    """How far each pair (P,) is above the best other candidate of both ends, (2, P), and its lower rank (P,) there."""
    ends, values = pairs.T.ravel(), np.tile(similarity, 2)
    order = np.lexsort((-values, ends))
    starts = np.flatnonzero(np.diff(ends[order], prepend=-1))
    rank = np.empty(len(ends), dtype=np.int64)
    rank[order] = np.arange(len(ends)) - np.repeat(starts, np.diff(np.append(starts, len(ends))))
    best = np.full((2, count), impostor_mean)
    for place in range(2):
        best[place, ends[rank == place]] = values[rank == place]
    other = np.where(rank == 0, best[1, ends], best[0, ends])
    return (values - other).reshape(2, -1), rank.reshape(2, -1).min(axis=0)


def _own_scale(means: np.ndarray, impostors: Impostors) -> tuple[np.ndarray, np.ndarray]:
    """Median (C,) and spread (C,) of the similarity of each cluster to the others, by its lower quartile."""
    count = len(means)
    if count < 4:
        return np.full(count, impostors.mean), np.full(count, impostors.spread)
    others = (means @ means.T)[~np.eye(count, dtype=bool)].reshape(count, -1)
    quartile, median = np.quantile(others, (0.25, 0.5), axis=1)
    return median, np.maximum((median - quartile) / TO_MEDIAN, LEAST_SPREAD * impostors.spread)


def _signed_log(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values))
