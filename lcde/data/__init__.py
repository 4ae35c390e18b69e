"""Files, kNN graphs, the synthetic benchmark, pair sampling and the Lightning data module."""
