"""The tokens that the networks read, built from features on their device.

Shape letters: B batch, D feature dimension, T faces of a set (K or 2K), U distinct ones, Q positions, C channels.
"""

import torch
from torch import Tensor


def distinct(faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct faces of each set.

    Parameters
    ----------
    faces : (B, T) int64

    Returns
    -------
    positions : (B, U) int64
        Where each distinct face stands first among the T.
    copies : (B, U) int64
        How often it occurs, 0 in the last columns of sets that have fewer than U.
    number : (B, T) int64
        Which of the U each of the T is.
    """
    ordered, order = faces.sort(dim=1, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    number = first.cumsum(dim=1) - 1
    size = int(number.max()) + 1
    copies = number.new_zeros(len(faces), size).scatter_add_(1, number, torch.ones_like(number))
    # Tokens that are not the first of their kind go to an extra last column, which is dropped.
    positions = order.new_zeros(len(faces), size + 1).scatter_(1, number.where(first, size), order)[:, :size]
    return positions, copies, torch.empty_like(number).scatter_(1, order, number)


def num_distinct(faces: Tensor) -> Tensor:
    """Number of distinct faces (B,) in each set of ``faces`` (B, T)."""
    ordered = faces.sort(dim=1).values
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1)


def take(x: Tensor, positions: Tensor) -> Tensor:
    """Rows (B, Q, C) of ``x`` (B, T, C) at ``positions`` (B, Q), or at the same positions (Q,) of each set."""
    if positions.ndim == 1:
        return x.index_select(1, positions)
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


def tokens(neighbours: Tensor, positions: Tensor | None = None) -> Tensor:
    """Append to each face's features its similarities to all T faces of its set.

    Parameters
    ----------
    neighbours : (B, T, D)
        Features.
    positions : (B, Q) or (Q,), optional
        Which faces get a token; all T without it.

    Returns
    -------
    (B, Q, D + T)
    """
    faces = neighbours if positions is None else take(neighbours, positions)
    return torch.cat([faces, faces @ neighbours.transpose(1, 2)], dim=-1)
