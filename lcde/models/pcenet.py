"""PCENet: do the two ends of an edge belong to one identity (paper, section 3.3)."""

import torch
from torch import Tensor, nn

from lcde.models.encoder import Encoder, take
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
        return self.edge_and_tokens(neighbours, torch.zeros(1, dtype=torch.int64, device=neighbours.device))[0]

    def edge_and_tokens(self, neighbours: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, with the encoded tokens (B, 2Q, D + 2K) of the neighbours at ``columns`` (Q,) of each end.

        The first column is 0, the end itself.
        """
        encoded = self.encoder(tokens(neighbours), torch.cat([columns, self.k + columns]))
        return self._classify(neighbours, encoded[:, [0, len(columns)]]), encoded

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
        x = take(tokens(neighbours), positions)
        encoded = self.encoder(x, number[:, [0, self.k]], copies.to(x.dtype))
        return torch.softmax(self._classify(neighbours, encoded).float(), dim=-1)[:, 1]
