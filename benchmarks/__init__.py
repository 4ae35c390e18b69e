"""Benchmarks (``python -m benchmarks``): a module each, with a function ``cases``; no test asserts a time."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
