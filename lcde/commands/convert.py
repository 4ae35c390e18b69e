"""Convert embeddings between .npy files and the layout of MS1M, and export the networks of a checkpoint."""

import argparse
from pathlib import Path

import numpy as np

from lcde.commands.entry import exit_on_input_error
from lcde.data.formats import read_labels, read_matrix
from lcde.files import require_free, write_atomically
from lcde.models.weights import export_published, load_checkpoint


def to_ms1m(features: Path, labels: Path, root: Path, part: str) -> None:
    """Write features and labels in the layout of MS1M: unit float32 rows, identities numbered from 0."""
    matrix = read_matrix(features, None)
    identities = read_labels(labels, len(matrix))
    targets = root / "features" / f"{part}.bin", root / "labels" / f"{part}.meta"
    require_free(*targets)
    write_atomically(targets[0], lambda file: file.write(matrix.tobytes()))
    write_atomically(targets[1], lambda file: np.savetxt(file, identities, fmt="%d"))


def from_ms1m(root: Path, part: str, feature_dim: int, folder: Path) -> None:
    """Write a part in the layout of MS1M as folder/<part>.features.npy and folder/<part>.labels.npy."""
    labels = read_labels(root / "labels" / f"{part}.meta")
    features = read_matrix(root / "features" / f"{part}.bin", feature_dim, len(labels))
    targets = folder / f"{part}.features.npy", folder / f"{part}.labels.npy"
    require_free(*targets)
    write_atomically(targets[0], lambda file: np.save(file, features))
    write_atomically(targets[1], lambda file: np.save(file, labels))


def export(checkpoint: Path, lce_weights: Path, pce_weights: Path) -> None:
    """Write the networks of a checkpoint as a published pair of weight files."""
    export_published(load_checkpoint(checkpoint).model, lce_weights, pce_weights)


@exit_on_input_error
def main() -> None:
    """Parse the command line and run one command."""
    parser = argparse.ArgumentParser(prog="lcde", description="Train and evaluate face clustering; convert its files.")
    commands = parser.add_subparsers(required=True, metavar="command")
    commands.add_parser("train", help="Train a method and show its F-scores: lcde train [key=value …].")
    commands.add_parser("eval", help="Cluster and score embeddings: lcde eval [checkpoint=…] [key=value …].")
    commands.add_parser("compare", help="Train and score many methods: lcde compare [methods=[…]] [key=value …].")
    for command in (to_ms1m, from_ms1m, export):
        subparser = commands.add_parser(command.__name__.replace("_", "-"), help=command.__doc__)
        for name, kind in command.__annotations__.items():
            if name != "return":
                subparser.add_argument(name, type=kind)
        subparser.set_defaults(command=command)
    arguments = vars(parser.parse_args())
    arguments.pop("command")(**arguments)
