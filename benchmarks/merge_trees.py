"""Train the trees that merge the clusters of galleries of up to 500 clusters: ``python -m benchmarks merge_trees``.

They learn from random galleries and from labelled ones of ``--real``: random people of these, with other numbers of
photographs, and galleries that are resampled from them. ``--leave-out`` trains trees without each embedder in turn and
clusters its galleries with these, so that the figures are of embedders that the trees never saw.
"""

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks import ROOT
from benchmarks.ablation import ResultTable, build_rule, load_module, read_galleries
from lcde.clustering.likelihood import TwoCovariance
from lcde.clustering.merge_trees import (
    COLUMNS,
    MANY_CLUSTERS,
    SHIPPED,
    MergeTrees,
    Part,
    describe_pairs,
    write_trees,
)
from lcde.clustering.merging import Merging
from lcde.clustering.whitening import Whitened
from lcde.configuration import build, compose_config
from lcde.data.formats import normalise, read_labels
from lcde.data.gallery import Gallery
from lcde.data.knn import build_knn
from lcde.data.random_galleries import log_uniform, random_direction
from lcde.data.resampled import ResampledGalleries
from lcde.methods.second_pass import COMPARED
from lcde.methods.unsupervised import UnsupervisedRule
from lcde.progress import counter, track
from lcde.training.nodes import majority, partly_merged

K = 80
REAL = ["lfw/part0_train", "lfw-mixed/part0_train"]
REAL += [f"galleries/{name}/part1_test" for name in ("arc512-50x83", "dlib128-116x15", "facenet512-17x67")]
REAL += ["galleries/sface128-15x35/part1_test", "extra/dlib128-bolly50/part1_test", "extra/dlib128-lag/part1_test"]
RANDOM = "random"  # the embedder of random galleries
SUBSETS, RESAMPLED = 120, 60  # galleries of each real one
RANDOM_GALLERIES, ALONE = 600, 500  # random ones, and those of random directions without two of one person
SMALLEST, LARGEST = 8, 3_500  # faces
MERGED = 3  # states of each gallery that are reached by random merges
BALANCE = 0.7  # an embedder of n galleries weighs as n to the power of 1 less this
FORESTS, SHARE = 4, 0.5  # trained on this share of the galleries each, and averaged
SETTINGS = {"max_iter": 100, "learning_rate": 0.12, "max_leaf_nodes": 15, "min_samples_leaf": 200}
SETTINGS |= {"l2_regularization": 1.0, "max_features": 0.5, "early_stopping": False}


class Mix(NamedTuple):
    """Galleries that the trees of one part learn from.

    Attributes
    ----------
    many_people : float
        Share of those of 40 to 450 people among the random people of real galleries; the others have 2 to 100.
    most_clusters : int
        Galleries of more are left out.
    most_pairs : int
        Of a gallery at one time: where there are more, the more similar half of so many, and some of all others.
    """

    many_people: float
    most_clusters: int
    most_pairs: int


MIXES: dict[Part, Mix] = {"few": Mix(0, 100, 5_000), "many": Mix(0.4, MANY_CLUSTERS, 1_000)}
Faces = tuple[np.ndarray, np.ndarray]  # features (N, D) and identities (N,)


class Pairs(NamedTuple):
    """Pairs of clusters of one gallery at some time of its merging."""

    described: np.ndarray
    same: np.ndarray
    weight: np.ndarray


class Start(UnsupervisedRule):
    """The rule up to where few clusters merge by trees; keeps what it has found by then."""

    def merge(
        self, labels: np.ndarray, whitened: Whitened, threshold: float, num_known: int = 0, only_centroids: bool = False
    ) -> np.ndarray:
        """Labels after merges by centroids."""
        labels = super().merge(labels, whitened, threshold, num_known, only_centroids=True)
        if not only_centroids:
            self.found = labels, whitened, threshold
        return labels


def main(arguments: Sequence[str]) -> None:
    """Train, write the trees, and print what they gain."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks merge_trees", description=__doc__)
    shared = ROOT.parent / "shared"
    parser.add_argument("--data", type=Path, default=shared / "data", help="folder of the real galleries (%(default)s)")
    what = "data set in MS1M's layout and its part; embedders are told apart by the letters that a name begins with"
    parser.add_argument("--real", nargs="*", default=REAL, metavar="FOLDER/PART", help=what)
    parser.add_argument("--galleries", type=Path, default=shared / "galleries" / "regimes.py", help="(%(default)s)")
    parser.add_argument("--leave-out", action="store_true", help="train without each embedder, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=SHIPPED, help="file of the trees (%(default)s)")
    options = parser.parse_args(arguments)

    module = load_module(options.galleries) if options.leave_out else None  # before the training: it may be missing
    faces = {name: read_faces(options.data, name) for name in options.real}
    console, examples = Console(), {}
    for part, mix in MIXES.items():
        examples[part] = learn_from(faces, mix, options.seed)
        count = Counter(embedder for embedder, _ in examples[part])
        numbers = ", ".join(f"{embedder} {number}" for embedder, number in sorted(count.items()))
        console.print(f"galleries for {part} clusters: {numbers}")
    write_trees(options.to, {part: fit(learnt, options.seed) for part, learnt in examples.items()})
    console.print(f"trees: {options.to}")
    if module:
        leave_out(examples, module, options.seed).print()


def read_faces(data: Path, name: str) -> Faces:
    """Unit features and identities of a part in MS1M's layout."""
    folder, part = data / Path(name).parent, Path(name).name
    identities = np.unique(read_labels(folder / "labels" / f"{part}.meta"), return_inverse=True)[1]
    features = np.fromfile(folder / "features" / f"{part}.bin", dtype=np.float32).reshape(len(identities), -1)
    return normalise(features, name), identities


def embedder_of(name: str) -> str:
    """What the name of a data set, part or gallery begins with: "dlib" of "galleries/dlib128-116x15/part1_test"."""
    return re.match("[a-z]+", Path(name).parent.name)[0]


def learn_from(faces: Mapping[str, Faces], mix: Mix, seed: int) -> list[tuple[str, list[Pairs]]]:
    """Embedder and examples of all galleries that the trees learn from."""
    count = RANDOM_GALLERIES + ALONE + (SUBSETS + RESAMPLED) * len(faces)
    examples = []
    with counter("galleries", count) as advance:
        for gallery in galleries(faces, mix, seed):
            examples.append(examples_of(gallery, mix))
            advance(1)
    return [each for each in examples if each[1]]


def galleries(faces: Mapping[str, Faces], mix: Mix, seed: int) -> Iterator[tuple[str, Faces, int]]:
    """Embedder, faces, and the number of each gallery, with a seed of its own."""
    drawn = build(compose_config("train", ["experiment=universal"]).dataset)
    number = 0
    for name, source in faces.items():
        resampled = ResampledGalleries([source], seed)
        for draw in range(SUBSETS + RESAMPLED):
            rng = np.random.default_rng([seed, number])
            drawn_faces = some_people(*source, mix, rng) if draw < SUBSETS else resampled.draw(draw)
            yield embedder_of(name), drawn_faces, number
            number += 1
    for draw in range(RANDOM_GALLERIES):
        yield RANDOM, drawn.draw(10**6 * (1 + seed) + draw), number + draw
    for draw in range(ALONE):
        yield RANDOM, all_different(np.random.default_rng([2, seed, draw])), number + RANDOM_GALLERIES + draw


def some_people(features: np.ndarray, identities: np.ndarray, mix: Mix, rng: np.random.Generator) -> Faces:
    """Random people, half of the time those of many photographs, in one of five regimes or with one photograph each."""
    there, alone = np.bincount(identities), rng.random() < 0.2
    many = mix.many_people and rng.random() < mix.many_people  # at 0 nothing is drawn: the shipped trees depend on it
    count = min(len(there), int(log_uniform(rng, (40, 451) if many else (8, 101) if alone else (2, 41))))
    weight = there / there.sum() if rng.random() < 0.5 else np.full(len(there), 1 / len(there))
    regime, rows = rng.integers(5), []
    for place, person in enumerate(rng.choice(len(there), size=count, replace=False, p=weight)):
        own = rng.permutation(np.flatnonzero(identities == person))
        most = (len(own), rng.integers(1, 5), 10, len(own) / (1 + place / 2), rng.random() * len(own))[regime]
        rows.append(own[: 1 if alone else max(1, int(most))])
    chosen = rng.permutation(np.concatenate(rows))
    return features[chosen], np.unique(identities[chosen], return_inverse=True)[1]


def all_different(rng: np.random.Generator) -> Faces:
    """Random directions, of which no two are one person, with a spectrum that falls and an offset that all share."""
    count, dim = (int(log_uniform(rng, limits)) for limits in ((8, 101), (16, 513)))
    spectrum = np.arange(1, dim + 1) ** -rng.uniform(0, 1)
    features = rng.standard_normal((count, dim)) * spectrum
    features += rng.uniform(0, 1) * np.linalg.norm(spectrum) * random_direction(rng, dim)
    return normalise(features.astype(np.float32), "random directions"), np.arange(count)


def examples_of(gallery: tuple[str, Faces, int], mix: Mix) -> tuple[str, list[Pairs]]:
    """Pairs of clusters at the start of merging, after random merges, and on the way of average linkage."""
    embedder, (features, identities), number = gallery
    rng, examples = np.random.default_rng([1, number]), []
    if not SMALLEST <= len(features) <= LARGEST or not identities.max():
        return embedder, []
    rule = Start(merge_trees=None)
    rule(Gallery(embedder, features, build_knn(features, min(K, len(features))), identities))
    labels, whitened, threshold = rule.found
    if not 1 <= labels.max() < mix.most_clusters:
        return embedder, []
    model, compared = TwoCovariance.of(whitened.features, labels), whitened.impostors.similarity(COMPARED)
    above = list(COLUMNS).index("above average linkage")

    def observe(start: np.ndarray, rounds: int, offset: float) -> None:
        """Merge by average linkage for some rounds, then keep the pairs."""
        merging, left = Merging(start, whitened.features, whitened.graph, compared), rounds

        def judge(sums: np.ndarray, sizes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
            nonlocal left
            described = describe_pairs(sums, sizes, pairs, whitened.impostors, threshold, model)
            odds = described[:, above] - offset
            if not left or odds.max() <= 0:
                of_cluster = majority(merging.labels, identities)
                same = of_cluster[pairs[:, 0]] == of_cluster[pairs[:, 1]]
                weight = 1 + np.log(sizes[pairs].min(axis=1))
                weight /= weight.sum() ** 0.5
                rows, times = thinned(described[:, above], mix.most_pairs, rng)
                examples.append(Pairs(described[rows], same[rows], weight[rows] * times))
                return np.full(len(pairs), -1.0)
            left -= 1
            return odds

        merging.by_judgement(judge)

    observe(labels, 0, 0)
    for _ in range(MERGED):
        observe(partly_merged(labels, identities, rng), 0, 0)
    observe(labels, int(rng.integers(1, 10)), rng.uniform(-1.5, 1.5))
    return embedder, examples


def thinned(similarity: np.ndarray, most: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows (m,) of at most ``most`` pairs of the given similarity (P,), and how many pairs each of them stands for."""
    if len(similarity) <= most:
        return np.arange(len(similarity)), np.ones(len(similarity))
    nearest, others = np.split(np.argsort(-similarity, kind="stable"), [most // 2])
    chosen = rng.choice(others, size=most - len(nearest), replace=False)
    times = np.repeat([1, len(others) / len(chosen)], [len(nearest), len(chosen)])
    return np.concatenate([nearest, chosen]), times


def fit(examples: Sequence[tuple[str, list[Pairs]]], seed: int) -> MergeTrees:
    """Trees that tell ``same`` pairs from others."""
    count = Counter(embedder for embedder, _ in examples)
    forests = []
    for number in range(FORESTS):
        chosen = np.random.default_rng([seed, number]).random(len(examples)) < SHARE
        pairs = [
            pair._replace(weight=pair.weight / count[embedder] ** BALANCE)
            for (embedder, of_gallery), kept in zip(examples, chosen, strict=True)
            for pair in of_gallery
            if kept
        ]
        described, same, weight = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
        forest = HistGradientBoostingClassifier(monotonic_cst=list(COLUMNS.values()), random_state=seed, **SETTINGS)
        forests.append(forest.fit(described, same, sample_weight=weight / weight.mean()))
    trees = as_arrays(forests)
    some = described[:1000]
    expected = expit(np.mean([forest.decision_function(some) for forest in forests], axis=0))
    np.testing.assert_allclose(expit(trees.log_odds(some)), expected, atol=1e-5)
    return trees


def as_arrays(forests: Sequence[HistGradientBoostingClassifier]) -> MergeTrees:
    """The mean of the log-odds of ``forests``, as arrays."""
    nodes = [predictor.nodes for forest in forests for (predictor,) in forest._predictors]
    width = max(map(len, nodes))

    def padded(values: Sequence[np.ndarray], dtype: type, value: int = 0) -> np.ndarray:
        rows = [np.pad(each, (0, width - len(each)), constant_values=value) for each in values]
        return np.stack(rows).astype(dtype)

    return MergeTrees(
        column=padded([np.where(each["is_leaf"], -1, each["feature_idx"]) for each in nodes], np.int16, -1),
        threshold=padded([each["num_threshold"] for each in nodes], np.float64),
        left=padded([each["left"] for each in nodes], np.int16),
        right=padded([each["right"] for each in nodes], np.int16),
        value=padded([each["value"] * each["is_leaf"] / len(forests) for each in nodes], np.float32),
        intercept=np.float64(np.mean([forest._baseline_prediction for forest in forests])),
    )


def leave_out(examples: Mapping[Part, Sequence[tuple[str, list[Pairs]]]], module: object, seed: int) -> ResultTable:
    """Regret on the galleries of each embedder, with and without trees that were trained on the others."""
    oracle, regrets = module.oracles(), {}
    with tempfile.TemporaryDirectory() as folder:
        for gallery in track(list(read_galleries(module)), "galleries"):
            if not gallery.labels_true.max():
                continue
            embedder = embedder_of(gallery.name)
            path = Path(folder) / f"{embedder}.npz"
            if not path.exists():
                others = {part: [each for each in some if each[0] != embedder] for part, some in examples.items()}
                write_trees(path, {part: fit(learnt, seed) for part, learnt in others.items()})
            for name, trees in (("without trees", "null"), ("trees", path)):
                rule = build_rule(["clustering=unsupervised", f"clustering.merge_trees={trees}"])
                quality = module.quality(gallery.labels_true, rule(gallery).labels)
                regrets.setdefault((embedder, name), []).append(oracle[gallery.name] - quality)
    for name in ("without trees", "trees"):
        regrets["all", name] = [value for key, some in regrets.items() if key[1] == name for value in some]
    rows = [
        [*key, *(f"{figure(values):.2f}" for figure in (np.mean, np.median, np.max))] for key, values in regrets.items()
    ]
    return ResultTable("Regret, trees of other embedders", ["embedder", "variant", "mean", "median", "worst"], rows, 2)
