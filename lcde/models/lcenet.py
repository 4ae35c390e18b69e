"""LCENet: the connectivity of a face to each of its neighbours (paper, section 3.1)."""

import torch
from torch import Tensor, nn

from lcde.models.encoder import Encoder
from lcde.models.tokens import tokens


class LCENet(nn.Module):
    """Classify each of the K neighbours of a face as the same identity or another one.

    Parameters
    ----------
    feature_dim, k : int
        D and K; tokens have width D + K.
    num_layers, nhead, dim_feedforward : int
        Layers, attention heads and feed-forward width of the encoder.
    dropout : float
    """

    def __init__(
        self, feature_dim: int, k: int, num_layers: int, nhead: int, dim_feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        width = feature_dim + k
        self.encoder = Encoder(width, num_layers, nhead, dim_feedforward, dropout)
        self.classifier = nn.Sequential(nn.Linear(2 * width, feature_dim), nn.PReLU(), nn.Linear(feature_dim, 2))

    def forward(self, neighbours: Tensor, columns: Tensor | None = None) -> Tensor:
        """Logits of each neighbour.

        Parameters
        ----------
        neighbours : (B, K, D)
            Features of the neighbours, the face itself first.
        columns : (Q,) int64, optional
            Positions of the neighbours to read, of which the first is 0; all K without it.

        Returns
        -------
        (B, Q, 2)
            Class 1 is the same identity.
        """
        x = self.encoder(tokens(neighbours, columns))
        hidden, activation, output = self.classifier
        assert isinstance(hidden, nn.Linear)
        # The first layer reads [centre ; token]; the centre's half of the product is shared by all K tokens.
        centre, token = hidden.weight.chunk(2, dim=1)
        answer = activation(x @ token.T + (x[:, :1] @ centre.T + hidden.bias))
        return output(answer.to(output.weight.dtype))

    def connectivity(self, neighbours: Tensor) -> Tensor:
        """Softmax probability (B, K) float32 of the same identity, from features (B, K, D)."""
        return torch.softmax(self(neighbours).float(), dim=-1)[..., 1]
