"""Pre-norm transformer encoder with the parameter names of the published weights.

Shape letters: B batch, T tokens, E token width, Q query tokens, H heads, C channels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcde.errors import InputError
from lcde.models.tokens import take

LARGEST_SCORE = 60.0  # attention scores up to it can be summed as exp in float32 and bfloat16
LEAST_LOG = -1e4  # log of no copies: finite, as it is multiplied


def attend(query: Tensor, key: Tensor, value: Tensor, copies: Tensor | None) -> Tensor:
    """Scaled dot-product attention on a CPU.

    Plain matrix products replace PyTorch's kernel where they are faster: in training, at small head widths up to four
    times in bfloat16, and in bfloat16 inference.

    Parameters
    ----------
    query : (B, H, Q, E/H)
    key, value : (B, H, T, E/H)
    copies : (B, T), optional
        How many equal tokens each token stands for, as exp(a + log n) = n exp(a); 0 for none.

    Returns
    -------
    (B, H, Q, E/H)
    """
    if not (query.requires_grad or query.dtype == torch.bfloat16):
        bias = None if copies is None else copies.log()[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, bias)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    # Subtracting the largest score of each row takes half the time of a bfloat16 softmax; only large scores need it.
    if max(abs(float(end)) for end in scores.detach().aminmax()) > LARGEST_SCORE:
        if copies is not None:
            scores = scores.masked_fill(copies[:, None, None] == 0, -torch.inf)
        scores = scores - scores.detach().amax(dim=-1, keepdim=True)
    count = value.new_ones(1) if copies is None else copies[:, None, :, None]
    if copies is not None:
        value = value * count
    sums = scores.exp_() @ torch.cat([value, count.expand(*value.shape[:-1], 1)], dim=-1)
    return sums[..., :-1] / sums[..., -1:]


class SharedDropout(nn.Dropout):
    """Dropout with one mask (B, 1, C) for all tokens of a set.

    Drawing a mask for each token would take a fifth of a training step on a CPU.
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Drop channels of ``x`` (B, T, C), then add ``residual`` (B, T, C) if given."""
        if not self.training or not self.p:
            return x if residual is None else residual + x
        mask = F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.p)
        return x * mask if residual is None else torch.addcmul(residual, x, mask)  # one pass over memory, not two


class EncoderLayer(nn.TransformerEncoderLayer):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), with dropout on both branches and inside the second.

    Parameters and their initial values are those of PyTorch's layer, which takes neither ``queries`` nor ``copies``.
    """

    def __init__(self, width: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__(width, nhead, dim_feedforward)
        self.dropout = SharedDropout(dropout)

    def forward(self, x: Tensor, queries: Tensor | None, copies: Tensor | None) -> Tensor:  # type: ignore[override]
        """(B, T, E) → (B, Q, E); ``queries`` and ``copies`` as of `Encoder.forward`."""
        attended = self._attention(self.norm1(x), queries, copies)
        x = self.dropout(attended, x if queries is None else take(x, queries))
        # In training, autograd would copy the product three times for an operation in place.
        hidden = self.dropout(F.relu(self.linear1(self.norm2(x)), inplace=not torch.is_grad_enabled()))
        return self.dropout(self.linear2(hidden), x)

    def _attention(self, x: Tensor, queries: Tensor | None, copies: Tensor | None) -> Tensor:
        """Multi-head attention of the query tokens over all T tokens."""
        if x.device.type != "cpu":
            return self._fused_attention(x, queries, copies)
        query, key, value = self._projected(x, queries, self.self_attn.in_proj_weight, self.self_attn.in_proj_bias)
        return self.self_attn.out_proj(attend(query, key, value, copies).transpose(1, 2).flatten(2))

    def _fused_attention(self, x: Tensor, queries: Tensor | None, copies: Tensor | None) -> Tensor:
        """The same by PyTorch's kernel for GPUs.

        It is fastest for heads whose width is a multiple of 8 and without a bias. Padding the weights, which are small,
        saves a copy of all queries, keys and values. One more channel adds log n of a token's n copies to its score.
        """
        heads, width = self.self_attn.num_heads, x.shape[-1]
        head = width // heads
        room = -head % 8 if copies is None else 8 - head % 8
        weight = F.pad(self.self_attn.in_proj_weight.view(3, heads, head, width), (0, 0, 0, room))
        bias = F.pad(self.self_attn.in_proj_bias.view(3, heads, head), (0, room))
        if copies is not None:
            bias[0, :, head] = head**0.5
        query, key, value = self._projected(x, queries, weight.flatten(0, 2), bias.flatten())
        if copies is not None:
            key[..., head] = copies.log().clamp(min=LEAST_LOG)[:, None]
        attended = F.scaled_dot_product_attention(query, key, value, scale=head**-0.5).transpose(1, 2).flatten(2)
        weight = F.pad(self.self_attn.out_proj.weight.view(width, heads, head), (0, room)).flatten(1)
        return F.linear(attended, weight, self.self_attn.out_proj.bias)

    def _projected(self, x: Tensor, queries: Tensor | None, weight: Tensor, bias: Tensor) -> Iterator[Tensor]:
        """Queries (B, H, Q, C), keys and values (B, H, T, C) by the stacked ``weight`` (3·H·C, E)."""
        if queries is None:
            parts = F.linear(x, weight, bias).chunk(3, dim=-1)
        else:
            width = len(weight) // 3
            query = F.linear(take(x, queries), weight[:width], bias[:width])
            parts = query, *F.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1)
        return (part.view(*part.shape[:2], self.self_attn.num_heads, -1).transpose(1, 2) for part in parts)


class Encoder(nn.Module):
    """A stack of encoder layers."""

    def __init__(self, width: int, num_layers: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, nhead, dim_feedforward, dropout) for _ in range(num_layers))

    def forward(self, x: Tensor, queries: Tensor | None = None, copies: Tensor | None = None) -> Tensor:
        """Encode sets of tokens.

        Parameters
        ----------
        x : (B, T, E)
        queries : (B, Q) or (Q,), optional
            Positions of the tokens that the last layer computes; all T without it.
        copies : (B, T), optional
            How many equal tokens each token stands for, 0 for none: outputs are those of the set with all of them.

        Returns
        -------
        (B, Q, E)
        """
        for layer in self.layers[:-1]:
            x = layer(x, None, copies)
        return self.layers[-1](x, queries, copies)


def require_divisible(feature_dim: int, k: int, nhead: int) -> None:
    """Raise `InputError`, which names the nearest K that fits, unless ``nhead`` divides the widths D + K and D + 2K."""
    if nhead < 1 or feature_dim % nhead or k % nhead:  # it divides both sums where it divides D and K, and only then
        remedy = "choose a model.nhead that does"
        if nhead > 0 and feature_dim % nhead == 0:
            remedy = f"the nearest K that fits is dataset.k={max(round(k / nhead), 1) * nhead}"
        sizes = f"dataset.feature_dim={feature_dim} and dataset.k={k}"
        raise InputError(f"model.nhead={nhead} must divide {sizes}; {remedy}.")
