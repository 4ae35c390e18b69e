"""Train and evaluate face clustering by local connectivity-based density estimation (LCDE, CVPR 2023)."""

import os
import sys
import warnings

if sys.platform == "darwin":
    # FAISS and torch each bring an OpenMP runtime; without this the second one to load ends the process.
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")

# Idle threads of GNU's OpenMP runtime, which the wheels of torch and FAISS bring on Linux, spin for 300,000 iterations
# before they sleep, and keep other processes from the cores. The runtime reads the variable when it is loaded.
# `python -m benchmarks busy` measures what this costs.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# On a CPU, oneDNN and torch's layer above it keep code for each of the last 1024 shapes of a bfloat16 product, 1 GB in
# all. Batches of neighbourhoods have ever new shapes, and those of similar shapes follow each other: few need be kept.
for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(cache, "128")

# Lightning 2.6 calls what torch 2.13 deprecates, at every batch; nothing that a user could change.
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")

__all__ = ["LCDE"]


def __getattr__(name: str) -> type:
    if name == "LCDE":  # on demand: the estimator imports Lightning, which takes seconds
        from lcde.estimator import LCDE

        return LCDE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
