"""Reports: figures, pages, what loggers are given, summaries of sweeps."""
