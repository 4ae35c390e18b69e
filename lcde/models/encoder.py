"""Pre-norm transformer encoder with the parameter names of the published weights.

Shape letters: B batch, T tokens, E token width, Q query tokens, H heads, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcde.errors import InputError
from lcde.models.tokens import take

LARGEST_SCORE = 60.0  # attention scores up to it can be summed as exp in float32 and bfloat16


class SelfAttention(nn.Module):
    """Multi-head attention of Q query tokens over all T tokens."""

    def __init__(self, width: int, nhead: int) -> None:
        super().__init__()
        self.nhead = nhead
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, queries: Tensor | None, copies: Tensor | None) -> Tensor:
        """(B, T, E) → (B, Q, E); ``queries`` and ``copies`` as of `Encoder.forward`."""
        if queries is None:
            query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            width = x.shape[-1]
            query = F.linear(take(x, queries), self.in_proj_weight[:width], self.in_proj_bias[:width])
            key, value = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        heads = attend(self._split(query), self._split(key), self._split(value), copies)
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.nhead, -1).transpose(1, 2)  # (B, H, T, E/H)


def attend(query: Tensor, key: Tensor, value: Tensor, copies: Tensor | None) -> Tensor:
    """Scaled dot-product attention.

    On a CPU plain matrix products replace PyTorch's kernel where they are faster: in training, at small head widths up
    to four times in bfloat16, and in bfloat16 inference.

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
    if query.device.type != "cpu" or not (query.requires_grad or query.dtype == torch.bfloat16):
        bias = None if copies is None else copies.log()[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, bias)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    # Subtracting the largest score of each row takes half the time of a bfloat16 softmax; only large scores need it.
    if max(abs(float(end)) for end in scores.detach().aminmax()) > LARGEST_SCORE:
        if copies is not None:
            scores = scores.masked_fill(copies[:, None, None] == 0, -torch.inf)
        scores = scores - scores.detach().amax(dim=-1, keepdim=True)
    if copies is None:
        count = value.new_ones(1).expand(*value.shape[:-1], 1)
    else:
        count = copies[:, None, :, None].expand(*value.shape[:-1], 1)
        value = value * count
    sums = scores.exp_() @ torch.cat([value, count], dim=-1)
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


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), with dropout on both branches and inside the second."""

    def __init__(self, width: int, nhead: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, nhead)
        self.linear1 = nn.Linear(width, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = SharedDropout(dropout)

    def forward(self, x: Tensor, queries: Tensor | None, copies: Tensor | None) -> Tensor:
        """(B, T, E) → (B, Q, E); ``queries`` and ``copies`` as of `Encoder.forward`."""
        attended = self.self_attn(self.norm1(x), queries, copies)
        x = self.dropout(attended, x if queries is None else take(x, queries))
        # In training, autograd would copy the product three times for an operation in place.
        hidden = self.dropout(F.relu(self.linear1(self.norm2(x)), inplace=not torch.is_grad_enabled()))
        return self.dropout(self.linear2(hidden), x)


class Encoder(nn.Module):
    """A stack of encoder layers over ``num_tokens`` tokens of width ``feature_dim`` + ``num_tokens``."""

    def __init__(
        self, feature_dim: int, num_tokens: int, num_layers: int, nhead: int, dim_feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        width = feature_dim + num_tokens
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
    if nhead > 0 and feature_dim % nhead == 0 == k % nhead:  # then it divides both sums, and only then
        return
    if nhead < 1 or feature_dim % nhead:
        remedy = f"no K fits feature_dim={feature_dim}, choose a model.nhead that divides it"
    else:
        remedy = f"the nearest K that fits is dataset.k={max(round(k / nhead), 1) * nhead}"
    raise InputError(
        f"model.nhead={nhead} must divide D+K={feature_dim + k} and D+2K={feature_dim + 2 * k} "
        f"(dataset.feature_dim={feature_dim}, dataset.k={k}); {remedy}."
    )
