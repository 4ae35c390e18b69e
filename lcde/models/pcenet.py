"""PCENet: do the two ends of an edge belong to one identity (paper, section 3.3)."""

import torch
from torch import Tensor, nn

from lcde.models.encoder import Encoder
from lcde.models.tokens import distinct, tokens

HIDDEN = 2048  # width of the published classifier


class PCENet(nn.Module):
    """Classify an edge from the neighbourhoods of both its ends."""

    def __init__(
        self, feature_dim: int, k: int, num_layers: int, nhead: int, dim_feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.k = k
        self.encoder = Encoder(feature_dim, 2 * k, num_layers, nhead, dim_feedforward, dropout)
        self.adjust_dim = nn.Sequential(
            nn.Linear(feature_dim + 2 * k, feature_dim), nn.PReLU(), nn.Linear(feature_dim, feature_dim)
        )
        self.classifier = nn.Sequential(
            nn.Linear(4 * feature_dim, HIDDEN), nn.PReLU(), nn.Linear(HIDDEN, HIDDEN), nn.PReLU(), nn.Linear(HIDDEN, 2)
        )

    def forward(self, neighbours: Tensor) -> Tensor:
        """Features (B, 2K, D), the K neighbours of one end then those of the other → logits (B, 2); class 1 = same."""
        ends = torch.tensor([0, self.k], device=neighbours.device)
        return self._classify(neighbours, self.encoder(tokens(neighbours), ends))

    def edge_and_tokens(self, neighbours: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `forward`, with all encoded tokens (B, 2K, D + 2K).

        With ``columns`` (Q,), of which the first is 0, only the neighbours there of each end are read: (B, 2Q, D + 2K).
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
        """Features (B, 2K, D) of ``faces`` (B, 2K) → probability (B,) that both ends are of one identity.

        A face that both ends have among their neighbours gives the same token twice, which is computed once.
        """
        positions, copies, number = distinct(faces)
        x = tokens(neighbours, positions)
        encoded = self.encoder(x, number[:, [0, self.k]], copies.to(x.dtype))
        return torch.softmax(self._classify(neighbours, encoded).float(), dim=-1)[:, 1]
