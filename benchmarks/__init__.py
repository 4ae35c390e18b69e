"""All benchmarks of the project: `python -m benchmarks`. A module each, with `cases`; no test waits for them."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
