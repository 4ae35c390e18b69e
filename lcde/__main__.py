"""``lcde``: convert embeddings between .npy and the published layout, and export a checkpoint's networks."""

import argparse
from pathlib import Path

import numpy as np

from lcde.data.formats import (
    read_features,
    read_labels,
    read_matrix,
    require_file,
    require_free,
    require_label_each,
    write_atomically,
)
from lcde.errors import exit_on_input_error
from lcde.models.weights import export_published, load_checkpoint


@exit_on_input_error
def main() -> None:
    """Parse the command line and run one command."""
    parser = argparse.ArgumentParser(prog="lcde", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    to_ms1m = commands.add_parser("to-ms1m", help="write .npy features and labels in the published layout")
    to_ms1m.add_argument("features", type=Path, help=".npy, N × D")
    to_ms1m.add_argument("labels", type=Path, help=".npy, or one integer a line")
    to_ms1m.add_argument("root", type=Path, help="folder of the data set")
    to_ms1m.add_argument("part", help="name of the part, such as part1_test")
    to_ms1m.set_defaults(run=lambda args: convert_to_ms1m(args.features, args.labels, args.root, args.part))

    from_ms1m = commands.add_parser("from-ms1m", help="write a part of the published layout as .npy files")
    from_ms1m.add_argument("root", type=Path, help="folder of the data set")
    from_ms1m.add_argument("part", help="name of the part, such as part1_test")
    from_ms1m.add_argument("feature_dim", type=int, help="width of its embeddings")
    from_ms1m.add_argument("folder", type=Path, help="where <part>.features.npy and <part>.labels.npy go")
    from_ms1m.set_defaults(run=lambda args: convert_from_ms1m(args.root, args.part, args.feature_dim, args.folder))

    export = commands.add_parser("export", help="write a checkpoint as a published pair of weight files")
    export.add_argument("checkpoint", type=Path, help=".ckpt that train.py wrote")
    export.add_argument("lce_weights", type=Path, help="LCENet's .pth to write")
    export.add_argument("pce_weights", type=Path, help="PCENet's .pth to write")
    export.set_defaults(
        run=lambda args: export_published(load_checkpoint(args.checkpoint), args.lce_weights, args.pce_weights)
    )

    args = parser.parse_args()
    args.run(args)


def convert_to_ms1m(features_file: Path, labels_file: Path, root: Path, part: str) -> None:
    """Write ``root/features/<part>.bin`` (unit float32 rows) and ``root/labels/<part>.meta`` (identities from 0).

    Raises `InputError` where the files do not fit each other, or where a part of that name is there already.
    """
    features = read_matrix(require_file(features_file, "features"), None)
    labels = read_labels(require_file(labels_file, "labels"))
    require_label_each(features, features_file, labels, labels_file)
    targets = root / "features" / f"{part}.bin", root / "labels" / f"{part}.meta"
    require_free(*targets)
    write_atomically(targets[0], lambda file: file.write(features.tobytes()))
    write_atomically(targets[1], lambda file: np.savetxt(file, labels, fmt="%d"))


def convert_from_ms1m(root: Path, part: str, feature_dim: int, folder: Path) -> None:
    """Write ``folder/<part>.features.npy`` (N, D) float32 and ``folder/<part>.labels.npy`` (N,) int64."""
    labels = read_labels(require_file(root / "labels" / f"{part}.meta", "labels"))
    features = read_features(require_file(root / "features" / f"{part}.bin", "features"), len(labels), feature_dim)
    targets = folder / f"{part}.features.npy", folder / f"{part}.labels.npy"
    require_free(*targets)
    for path, array in zip(targets, (features, labels), strict=True):
        write_atomically(path, lambda file, array=array: np.save(file, array))


if __name__ == "__main__":
    main()
