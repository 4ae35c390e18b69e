"""LCENet: how strongly a face is connected to each of its neighbours (paper, section 3.1)."""

import torch
from torch import Tensor, nn

from lcde.models.encoder import Encoder
from lcde.models.tokens import tokens


class LCENet(nn.Module):
    """Classify each of the K neighbours of a face as the same identity or another one."""

    def __init__(
        self, feature_dim: int, k: int, num_layers: int, nhead: int, dim_feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = Encoder(feature_dim, k, num_layers, nhead, dim_feedforward, dropout)
        self.classifier = nn.Sequential(
            nn.Linear(2 * (feature_dim + k), feature_dim), nn.PReLU(), nn.Linear(feature_dim, 2)
        )

    def forward(self, neighbours: Tensor, columns: Tensor | None = None) -> Tensor:
        """Features (B, K, D) of the neighbours, the face itself first → logits (B, K, 2); class 1 = same identity.

        With ``columns`` (Q,), of which the first is 0, only the neighbours there are read: (B, Q, 2).
        """
        x = self.encoder(tokens(neighbours, columns))
        hidden, activation, output = self.classifier
        # The first layer reads [centre ; token]; the centre's half of the product is shared by all K tokens.
        centre, token = hidden.weight.chunk(2, dim=1)
        answer = activation(x @ token.T + (x[:, :1] @ centre.T + hidden.bias))
        return output(answer.to(output.weight.dtype))

    def connectivity(self, neighbours: Tensor) -> Tensor:
        """Features (B, K, D) → connectivity (B, K), the softmax probability of the same identity."""
        return torch.softmax(self(neighbours).float(), dim=-1)[..., 1]
