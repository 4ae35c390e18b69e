"""All benchmarks of the project: `python -m benchmarks`. A module each, with `cases`; no test waits for them."""
