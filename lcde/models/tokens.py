"""From kNN edges to the tokens that the networks read, on the device where the features live.

B batch, K neighbours with the face itself first, D feature dimension, T tokens (K or 2K).
"""

import torch
from torch import Tensor


def gather_neighbourhoods(features: Tensor, indices: Tensor, faces: Tensor) -> Tensor:
    """Features of the neighbours of ``faces``: (N, D), (N, K), (B, …) → (B, …, K, D)."""
    return features[indices[faces].long()]


def tokens(neighbours: Tensor) -> Tensor:
    """Append to each face's features its similarities to all T faces of the set: (B, T, D) → (B, T, D + T)."""
    return torch.cat([neighbours, neighbours @ neighbours.transpose(1, 2)], dim=-1)
