"""PCENet: the probability that both ends of an edge are of one identity (paper, section 3.3)."""

import torch
from torch import Tensor, nn

from lcde.models.encoder import Encoder
from lcde.models.tokens import distinct, tokens

HIDDEN = 2048  # width of the published classifier


class PCENet(nn.Module):
    """Classify an edge from the neighbourhoods of both its ends.

    Parameters
    ----------
    feature_dim, k : int
        D and K; tokens have width D + 2K.
    num_layers, nhead, dim_feedforward : int
        Layers, attention heads and feed-forward width of the encoder.
    dropout : float
    """

    def __init__(
        self, feature_dim: int, k: int, num_layers: int, nhead: int, dim_feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.k, width = k, feature_dim + 2 * k
        self.encoder = Encoder(width, num_layers, nhead, dim_feedforward, dropout)
        self.adjust_dim = nn.Sequential(nn.Linear(width, feature_dim), nn.PReLU(), nn.Linear(feature_dim, feature_dim))
        self.classifier = nn.Sequential(
            nn.Linear(4 * feature_dim, HIDDEN), nn.PReLU(), nn.Linear(HIDDEN, HIDDEN), nn.PReLU(), nn.Linear(HIDDEN, 2)
        )

    def forward(self, neighbours: Tensor) -> Tensor:
        """Logits of an edge.

        Parameters
        ----------
        neighbours : (B, 2K, D)
            Features of the K neighbours of one end, then of those of the other, each end first of its K.

        Returns
        -------
        (B, 2)
            Class 1 is the same identity.
        """
        return self.edge_and_tokens(neighbours)[0]

    def edge_and_tokens(self, neighbours: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits and the encoded tokens that they come from.

        Parameters
        ----------
        neighbours : (B, 2K, D)
            Features, as of `forward`.
        columns : (Q,) int64, optional
            Positions of the neighbours of each end to read, of which the first is 0; all K without it.

        Returns
        -------
        logits : (B, 2)
        encoded : (B, 2Q, D + 2K)
        """
        positions = None if columns is None else torch.cat([columns, self.k + columns])
        encoded = self.encoder(tokens(neighbours, positions))
        return self._classify(neighbours, encoded[:, [0, encoded.shape[1] // 2]]), encoded

    def _classify(self, neighbours: Tensor, ends: Tensor) -> Tensor:
        """Logits (B, 2) from the features (B, 2K, D) and the encoded tokens (B, 2, D + 2K) of both ends."""
        context = self.adjust_dim(ends)  # (B, 2, D)
        hidden = self.classifier[:-1](torch.cat([neighbours[:, [0, self.k]], context], dim=-1).flatten(1))
        output = self.classifier[-1]
        return output(hidden.to(output.weight.dtype))

    def edge_probability(self, neighbours: Tensor, faces: Tensor) -> Tensor:
        """Probability that both ends are of one identity.

        A neighbour of both ends gives the same token twice, which is computed once.

        Parameters
        ----------
        neighbours : (B, 2K, D)
            Features of ``faces``.
        faces : (B, 2K) int64
            Neighbours of one end, then those of the other, each end first of its K.

        Returns
        -------
        (B,) float32
        """
        positions, copies, number = distinct(faces)
        x = tokens(neighbours, positions)
        encoded = self.encoder(x, number[:, [0, self.k]], copies.to(x.dtype))
        return torch.softmax(self._classify(neighbours, encoded).float(), dim=-1)[:, 1]
