"""``python -m benchmarks [names]``: measure, print one table, write the results and a figure.

Three benchmarks compare scores instead of times: ``python -m benchmarks ablation``, rules with and without each of
their parts, ``python -m benchmarks galleries``, methods without labels on real galleries, and ``python -m benchmarks
perturbed``, approximate and flawed kNN graphs. ``python -m benchmarks gpu`` measures what a GPU gives, all in one
process. ``python -m benchmarks merge_trees`` trains the trees that merge few clusters. ``python -m benchmarks
rehearsal`` writes a data set of MS1M's size. ``python -m benchmarks soak`` kills and resumes an hour of training.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks import ROOT
from benchmarks.measure import Case, Options, machine, measure_all, print_table, write_results

BENCHMARKS = ("stages", "metrics", "knn", "networks", "pipeline", "training", "sweep", "busy")
# Each of these has a command line of its own.
ALONE = ("ablation", "galleries", "gpu", "merge_trees", "perturbed", "rehearsal", "soak")
SMALLEST = 10_000  # the smallest size, a sixteenth of it, must still suffice to train FAISS's codes


def main() -> None:
    """Run the benchmarks that the command line names."""
    if sys.argv[1:] and sys.argv[1] in ALONE:
        importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names, alone = ", ".join(BENCHMARKS), ", ".join(ALONE)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help=f"of {names}; all by default; or one of {alone}, with options of its own",
    )
    parser.add_argument("--largest", type=int, default=200_000, help="faces of the largest input (%(default)s)")
    parser.add_argument("--k", type=int, default=80, help="neighbours of a face, itself counted (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each contender (%(default)s)")
    parser.add_argument("--peer", type=Path, default=ROOT.parent / "shared" / "peers" / "lce-pcenet")
    parser.add_argument(
        "--checkpoint", type=Path, help="for pipeline and sweep; networks are trained briefly by default"
    )
    parser.add_argument("--data", type=Path, help="folder in MS1M's layout for the sweep; synthetic faces by default")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {names}, {alone}")
    if arguments.largest < SMALLEST or not 4 <= arguments.k <= arguments.largest // 40:
        parser.error(f"--largest must be {SMALLEST} or more, and --k lie between 4 and a fortieth of it")

    with tempfile.TemporaryDirectory() as scratch:
        options = Options(
            largest=arguments.largest,
            k=arguments.k,
            peer=arguments.peer,
            checkpoint=arguments.checkpoint,
            data=arguments.data,
            results=arguments.results,
            scratch=Path(scratch),
        )
        cases = [case for name in arguments.names or BENCHMARKS for case in cases_of(name, options)]
        measurements = measure_all(cases, arguments.repeats)
    described = machine()
    print_table(measurements, described)
    settings = {"largest": arguments.largest, "k": arguments.k, "repeats": arguments.repeats}
    Console().print(f"results: {write_results(measurements, described, settings, arguments.results)}")


def cases_of(name: str, options: Options) -> list[Case]:
    """The cases of a benchmark, imported alone: the measured processes import this file, but no other benchmark."""
    return importlib.import_module(f"benchmarks.{name}").cases(options)


if __name__ == "__main__":
    main()
