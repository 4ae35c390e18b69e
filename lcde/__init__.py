"""Train and evaluate face clustering by local connectivity-based density estimation (LCDE, CVPR 2023)."""

import os
import sys
import warnings

if sys.platform == "darwin":
    # FAISS and torch each bring an OpenMP runtime; without this the second one to load ends the process.
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")

# Lightning 2.6 calls what torch 2.13 deprecates, at every batch; nothing that a user could change.
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")

__all__ = ["LCDE"]


def __getattr__(name: str) -> type:
    if name == "LCDE":  # on demand: the estimator imports Lightning, which takes seconds
        from lcde.estimator import LCDE

        return LCDE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
