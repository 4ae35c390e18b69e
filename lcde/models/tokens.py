"""From kNN edges to the tokens that the networks read, on the device where the features live.

B batch, K neighbours with the face itself first, D feature dimension, T tokens (K or 2K).
"""

import torch
from torch import Tensor


def distinct(faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The different ones among T ``faces`` (B, T) of a set, U at most.

    Returns their positions (B, U) among the T, how often each occurs (B, U), 0 where a set has fewer than U, and which
    of the U each of the T is (B, T).
    """
    ordered, order = faces.sort(dim=1, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    number = first.cumsum(dim=1) - 1
    size = int(number.max()) + 1
    copies = number.new_zeros(len(faces), size).scatter_add_(1, number, torch.ones_like(number))
    # What is not the first of its kind is written behind the others and cut off.
    positions = order.new_zeros(len(faces), size + 1).scatter_(1, number.where(first, size), order)[:, :size]
    return positions, copies, torch.empty_like(number).scatter_(1, order, number)


def num_distinct(faces: Tensor) -> Tensor:
    """How many different ones there are in each set of ``faces`` (B, T): (B,)."""
    ordered = faces.sort(dim=1).values
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1)


def take(x: Tensor, positions: Tensor) -> Tensor:
    """The rows (B, Q, C) of ``x`` (B, T, C) at ``positions`` (B, Q), or at the same (Q,) of each set."""
    if positions.ndim == 1:
        return x.index_select(1, positions)
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


def tokens(neighbours: Tensor, positions: Tensor | None = None) -> Tensor:
    """Append to each face's features its similarities to all T faces of the set: (B, T, D) → (B, T, D + T).

    With ``positions``, as of `take`, only of the Q faces there: (B, Q, D + T).
    """
    faces = neighbours if positions is None else take(neighbours, positions)
    return torch.cat([faces, faces @ neighbours.transpose(1, 2)], dim=-1)
