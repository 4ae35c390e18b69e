"""Measure jobs in interleaved turns, each in a fresh process; describe the machine; write the results."""

import importlib.metadata
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lcde.files import write_atomically, write_text
from lcde.progress import track

REPEAT_FOR = 0.3  # seconds for which a short job is repeated in its process; the median counts


@dataclass(frozen=True)
class Run:
    """What one run of a job took.

    Attributes
    ----------
    seconds : float
    peak_memory_mb : float
    figures : mapping of str to float
        Other figures of the run, such as its recall.
    """

    seconds: float
    peak_memory_mb: float
    figures: Mapping[str, float]


# Makes the input and returns the job: that returns its figures, or a Run where it measures itself.
Prepare = Callable[[], Callable[[], Mapping[str, float] | Run | None]]


@dataclass(frozen=True)
class Options:
    """Options of the command line.

    Attributes
    ----------
    largest, k : int
        Largest N, and K, of the synthetic graphs.
    peer : Path
        Folder of the published program.
    checkpoint : Path, optional
        Trained networks; None trains some briefly.
    data : Path, optional
        Folder of a data set in MS1M's layout, for the sweep; None takes synthetic faces.
    results : Path
        Folder of the results.
    scratch : Path
        Folder of temporary files.
    """

    largest: int
    k: int
    peer: Path
    checkpoint: Path | None
    data: Path | None
    results: Path
    scratch: Path

    @property
    def sizes(self) -> list[int]:
        """Growing N, each four times the one before."""
        return [self.largest // 16, self.largest // 4, self.largest]


@dataclass(frozen=True)
class Case:
    """One job on one size, done by one contender or by several on the same input.

    Attributes
    ----------
    benchmark, name : str
    num_faces : int
        N of the input.
    contenders : mapping of str to callable
        What prepares the job, by name; picklable, so a `partial` of a module's function. Ratios compare the others'
        time with that of the first.
    """

    benchmark: str
    name: str
    num_faces: int
    contenders: Mapping[str, Prepare]


@dataclass(frozen=True)
class Measurement:
    """What one contender took.

    Attributes
    ----------
    benchmark, case, contender : str
    num_faces : int
        N of the input.
    seconds : list of float
        One value for each process.
    peak_memory_mb : float
        Largest of all processes, the input included.
    ratio : float
        Median over the turns of ``seconds`` divided by that of the case's first contender.
    figures : dict of str to float
        Median over the turns of each figure.
    """

    benchmark: str
    case: str
    num_faces: int
    contender: str
    seconds: list[float]
    peak_memory_mb: float
    ratio: float
    figures: dict[str, float]

    @property
    def median(self) -> float:
        """Median of ``seconds``."""
        return statistics.median(self.seconds)


def measure(case: Case, repeats: int) -> list[Measurement]:
    """Run the contenders of ``case`` in turns, ``repeats`` times each, every time in a fresh process."""
    runs: dict[str, list[Run]] = {name: [] for name in case.contenders}
    for _ in range(repeats):
        for name, prepare in case.contenders.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                try:
                    runs[name].append(pool.submit(_run, prepare).result())
                except BrokenProcessPool:
                    raise SystemExit(
                        f"{case.name} by {name} on {case.num_faces:,} faces was killed, probably for lack of memory; "
                        "choose a smaller --largest."
                    ) from None
    return summarise(case, runs)


def summarise(case: Case, runs: Mapping[str, Sequence[Run]]) -> list[Measurement]:
    """A measurement of each contender from its ``runs``, those of one turn at the same place in all."""
    own = [run.seconds for run in next(iter(runs.values()))]
    measurements = []
    for name, results in runs.items():
        seconds = [run.seconds for run in results]
        ratio = statistics.median(a / b for a, b in zip(seconds, own, strict=True))
        peak, figures = max(run.peak_memory_mb for run in results), _medians([run.figures for run in results])
        measurements.append(Measurement(case.benchmark, case.name, case.num_faces, name, seconds, peak, ratio, figures))
    return measurements


def _medians(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in figures) for name in figures[0]}


def measure_all(cases: Sequence[Case], repeats: int) -> list[Measurement]:
    """`measure` each of ``cases``, with a progress bar."""
    return [result for case in track(cases, "benchmarks") for result in measure(case, repeats)]


def _run(prepare: Prepare) -> Run:
    job = prepare()
    seconds: list[float] = []
    end = time.perf_counter() + REPEAT_FOR
    while not seconds or time.perf_counter() < end:
        start = time.perf_counter()
        figures = job()
        if isinstance(figures, Run):
            return figures
        seconds.append(time.perf_counter() - start)
    return Run(statistics.median(seconds), peak_memory_mb(), figures or {})


def peak_memory_mb() -> float:
    """Largest memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # here getrusage would count the parent process's memory too
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    import resource

    return _megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def peak_memory_of_children_mb() -> float:
    """Largest memory of any process that this one started and that has ended."""
    import resource  # there is none on Windows

    return _megabytes(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def _megabytes(max_rss: int) -> float:
    return max_rss / (2**20 if sys.platform == "darwin" else 2**10)  # in bytes on macOS, in KiB elsewhere


def machine() -> dict[str, str | int]:
    """What the figures depend on: processor, cores, memory, versions, threads, date."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) // 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    import torch  # here, so that the measured processes start small

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gb": memory[0] if memory else 0,
        **gpu,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def print_table(measurements: Sequence[Measurement], described: Mapping[str, str | int]) -> None:
    """One line per contender: median seconds, ratio to the first, peak memory and further figures."""
    title = f"{described['processor']}, {described['cores']} cores, torch {described['torch']}, {described['date']}"
    table = Table(title=title, caption="medians of interleaved runs, each in a fresh process; memory with the input")
    for column in ("benchmark", "case", "by", "faces", "seconds", "× first", "peak GB", "figures"):
        right = column in ("faces", "seconds", "× first", "peak GB")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "figures")
    previous = None
    for result in measurements:
        if previous not in (None, result.case):
            table.add_section()
        previous = result.case
        figures = ", ".join(f"{name} {value:.4g}" for name, value in result.figures.items())
        cells = f"{result.num_faces:,}", f"{result.median:.4g}", f"{result.ratio:.3g}"
        memory = f"{result.peak_memory_mb / 2**10:.2f}"
        table.add_row(result.benchmark, result.case, result.contender, *cells, memory, figures)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def write_results(
    measurements: Sequence[Measurement], described: Mapping[str, str | int], settings: Mapping[str, int], folder: Path
) -> Path:
    """Write ``<date and time>.json`` and a figure of the same name into ``folder``; return the JSON file's path."""
    path = folder / f"{str(described['date'])[:19].replace(':', '-')}.json"
    results = [asdict(result) | {"median": result.median} for result in measurements]
    text = json.dumps({"machine": described, "settings": settings, "results": results}, indent=1) + "\n"
    write_text(path, text)
    image = _draw(measurements)
    write_atomically(path.with_suffix(".png"), lambda file: file.write(image))
    return path


def _draw(measurements: Sequence[Measurement]) -> bytes:
    """PNG: seconds and peak memory against N on logarithmic axes, a line for each case and contender."""
    from matplotlib.figure import Figure  # here, so that the measured processes start small
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    from lcde.report.plots import PALETTE

    lines: dict[tuple[str, str], list[Measurement]] = {}
    for result in sorted(measurements, key=lambda result: result.num_faces):
        lines.setdefault((f"{result.benchmark}: {result.case}", result.contender), []).append(result)
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(name for name, _ in lines))}
    styles = dict(zip(dict.fromkeys(contender for _, contender in lines), ("o-", "s--", "^:", "v-."), strict=False))
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for (name, contender), results in lines.items():
        sizes, label = [result.num_faces for result in results], f"{name}, {contender}"
        style = styles.get(contender, "x-")
        axes[0].loglog(sizes, [result.median for result in results], style, color=colours[name], label=label)
        axes[1].loglog(sizes, [result.peak_memory_mb / 2**10 for result in results], style, color=colours[name])
    axes[0].set(title="seconds: lower is better", xlabel="faces")
    axes[1].set(title="peak memory (GB), the input included", xlabel="faces")
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    return image.getvalue()
