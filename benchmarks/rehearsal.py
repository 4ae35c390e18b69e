"""A data set of MS1M's size and shape: ``python -m benchmarks rehearsal FOLDER``.

The parts have as many faces and people as those of MS1M (5.2 million faces in part 9) and its layout, so that every
command can be tried at full size before the data are there: time, memory and disk, not scores. The faces are those of
the synthetic benchmark, with look-alikes, blurred faces and wrong labels. A part is written some faces at a time.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from rich.console import Console

from lcde.configuration import build, compose_config
from lcde.data.gallery import row_blocks
from lcde.data.synthetic import SyntheticBenchmark
from lcde.files import require_free, write_atomically
from lcde.progress import track

PEOPLE = 8_573  # of the training part, and of each of the parts that an evaluation part consists of
FACES = {  # of the parts that the literature uses
    "part0_train": 576_494,
    "part1_test": 584_013,
    "part3_test": 1_740_301,
    "part5_test": 2_890_517,
    "part7_test": 4_046_365,
    "part9_test": 5_206_761,
}
FEATURE_DIM = 256
FACE_DIM = 96  # directions that faces vary along: embeddings use far fewer than they have
NOISE = 0.2  # length of the noise in all directions; a face has length 1
SIZE_SPREAD = 0.7  # of the logarithm of a person's number of faces
WRONG_LABELS = 0.005
FACES_AT_A_TIME = 65_536


def main(arguments: Sequence[str]) -> None:
    """Write the parts that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks rehearsal", description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="where features/ and labels/ are written: dataset.root of the commands"
    )
    parser.add_argument("--parts", nargs="+", choices=FACES, default=["part0_train", "part1_test"], metavar="PART")
    parser.add_argument("--share", type=float, default=1.0, help="of the people of each part (%(default)s)")
    options = parser.parse_args(arguments)
    if not 0 < options.share <= 1:
        parser.error(f"--share must be above 0 and at most 1, not {options.share:g}")
    paths = {part: part_files(options.folder, part) for part in options.parts}
    require_free(*(path for files in paths.values() for path in files))
    for part, (features, labels) in paths.items():
        num_people = PEOPLE * max(1, int(part[4]))
        num_faces, num_people = (max(2, round(count * options.share)) for count in (FACES[part], num_people))
        write_part(features, labels, num_faces, num_people, stream=int(part[4]))
        Console().print(f"{part}: {num_faces:,} faces of {num_people:,} people, {features.stat().st_size / 1e9:.2f} GB")


def part_files(folder: Path, part: str) -> tuple[Path, Path]:
    """Features and labels of a part in MS1M's layout."""
    return folder / "features" / f"{part}.bin", folder / "labels" / f"{part}.meta"


def write_part(features: Path, labels: Path, num_faces: int, num_people: int, stream: int) -> None:
    """Write one part; ``stream`` numbers its random numbers."""
    benchmark = build(compose_config("eval", [f"dataset.feature_dim={FACE_DIM}"]).dataset)
    rng = np.random.default_rng([benchmark.seed, stream])
    identities = people_of_faces(num_faces, num_people, rng)
    given, wrong = identities.copy(), rng.random(num_faces) < WRONG_LABELS
    given[wrong] = rng.integers(num_people, size=wrong.sum())
    labels.parent.mkdir(parents=True, exist_ok=True)
    features.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(labels, lambda file: np.savetxt(file, given, "%d"))

    def write_features(file: BinaryIO) -> None:
        means, lengths = benchmark.mean_faces(num_people, rng), benchmark.variation(num_people, rng)
        basis = np.linalg.qr(np.random.default_rng(benchmark.seed).standard_normal((FEATURE_DIM, FACE_DIM)))[0].T
        for rows in track(list(row_blocks(num_faces, size=FACES_AT_A_TIME)), features.stem):
            file.write(some_faces(benchmark, means[identities[rows]], lengths[identities[rows]], basis, rng).tobytes())

    write_atomically(features, write_features)


def people_of_faces(num_faces: int, num_people: int, rng: np.random.Generator) -> np.ndarray:
    """Number (N,) of the person of each face, in random order; everybody has at least one."""
    weights = rng.lognormal(0.0, SIZE_SPREAD, num_people)
    ends = np.cumsum(weights) / weights.sum() * (num_faces - num_people)
    sizes = 1 + np.diff(np.round(ends), prepend=0).astype(np.int64)
    return rng.permutation(np.repeat(np.arange(num_people), sizes))


def some_faces(
    benchmark: SyntheticBenchmark, means: np.ndarray, lengths: np.ndarray, basis: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Unit faces (n, `FEATURE_DIM`) float32 of people of ``means`` and ``lengths`` (n,)."""
    faces = benchmark.photographs(means, lengths, rng) @ basis
    faces += NOISE / FEATURE_DIM**0.5 * rng.standard_normal(faces.shape)
    return (faces / np.linalg.norm(faces, axis=1, keepdims=True)).astype(np.float32)
