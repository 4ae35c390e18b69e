"""`python -m benchmarks [names]`: measure, print one table, keep the results with a figure."""

import argparse
import importlib
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks import ROOT
from benchmarks.measure import Case, Options, machine, measure_all, print_table, write_results

BENCHMARKS = ("stages", "metrics", "knn", "networks", "pipeline", "training", "sweep")
SMALLEST = 10_000  # the smallest size, a sixteenth, still holds what FAISS trains its codes on


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--largest", type=int, default=200_000, help="faces of the largest input (%(default)s)")
    parser.add_argument("--k", type=int, default=80, help="neighbours of a face, itself included (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each contender (%(default)s)")
    parser.add_argument("--peer", type=Path, default=ROOT.parent / "shared" / "peers" / "lce-pcenet")
    parser.add_argument("--checkpoint", type=Path, help="of train.py, for the pipeline; trained briefly by default")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    if arguments.largest < SMALLEST or not 4 <= arguments.k <= arguments.largest // 40:
        parser.error(f"--largest must be {SMALLEST} or more, and --k lie between 4 and a fortieth of it")

    with tempfile.TemporaryDirectory() as scratch:
        kept = arguments.checkpoint, arguments.results
        options = Options(arguments.largest, arguments.k, arguments.peer, *kept, Path(scratch))
        cases = [case for name in arguments.names or BENCHMARKS for case in cases_of(name, options)]
        measurements = measure_all(cases, arguments.repeats)
    described = machine()
    print_table(measurements, described)
    settings = {"largest": arguments.largest, "k": arguments.k, "repeats": arguments.repeats}
    Console().print(f"kept in {write_results(measurements, described, settings, arguments.results)}")


def cases_of(name: str, options: Options) -> list[Case]:
    """The cases of a benchmark, imported alone: measured processes, which import this file, hold nothing of others."""
    return importlib.import_module(f"benchmarks.{name}").cases(options)


if __name__ == "__main__":
    main()
