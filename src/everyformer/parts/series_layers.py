"""Layers of transformers over time series: calendar and position codes, post-norm encoder and decoder layers, checks.

Sizes and equations as in thuml/Time-Series-Library; attention is a function that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.parts.series_attention import TokenAttention, dropout, resolve, with_weights

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


def check_positive(**values: int) -> None:
    """Raise ``ValueError`` that names the first argument below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def check_inputs(
    series: Tensor, marks: Tensor | None, future: Tensor | None, *, steps: tuple[int, int], widths: tuple[int, int]
) -> None:
    """Raise ``ValueError`` where the inputs of a forecast do not have the shapes the model was built for.

    ``steps`` is (look-back, horizon); ``widths`` the number of features in ``marks`` and in ``future``.
    """
    if series.ndim != 3 or series.shape[1] != steps[0]:
        raise ValueError(f"series must have shape (batch, {steps[0]}, variates), got {tuple(series.shape)}")
    for name, given, length, width in zip(("marks", "future"), (marks, future), steps, widths, strict=True):
        shape = (series.shape[0], length, width)
        if (given is None and width) or (given is not None and tuple(given.shape) != shape):
            what = "None" if given is None else tuple(given.shape)
            raise ValueError(f"{name} must {'have shape ' + str(shape) if width else 'be None'}, got {what}")


def normalise_window(
    series: Float[Tensor, "batch time variates"],
) -> tuple[Float[Tensor, "batch time variates"], Float[Tensor, "batch 1 variates"], Float[Tensor, "batch 1 variates"]]:
    """A window with zero mean and unit deviation per variate, and the mean and deviation that undo it.

    Population variance + 1e-5, so a constant variate stays finite. The mean is a constant to autograd and the deviation
    is not, as in the authors' code; nothing is done in place, so gradients reach the input.
    """
    mean = series.mean(dim=1, keepdim=True).detach()
    centred = series - mean
    deviation = (centred.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
    return centred / deviation, mean, deviation


class EncoderLayer(nn.Module):
    """Post-norm transformer layer over tokens, with a swappable attention.

    Args:
        dim: width of a token, a multiple of ``heads``.
        heads: attention heads.
        ff: width of the feed-forward part.
        attention: name or callable, see :mod:`.series_attention`.
        dropout: on attention weights, on both branches and inside the feed-forward part.
        activation: ``"gelu"`` or ``"relu"``.
    """

    def __init__(
        self, dim: int, heads: int, ff: int, attention: str | TokenAttention, dropout: float, activation: str
    ) -> None:
        super().__init__()
        check_positive(dim=dim, heads=heads, ff=ff)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
        self.heads = heads
        self.dropout = dropout
        self.attention = resolve(attention)
        self.activation = ACTIVATIONS[activation]
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.up = nn.Linear(dim, ff)
        self.down = nn.Linear(ff, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def attend(self, x: Tensor, return_attention: bool) -> tuple[Tensor, Tensor | None]:
        """The attention branch, and its weights where wanted."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        drop = self.dropout if self.training else 0.0
        if return_attention:
            mixed, weights = with_weights(self.attention, query, key, value, dropout_p=drop)
        else:
            mixed, weights = self.attention(query, key, value, dropout_p=drop), None
        return self.out(mixed.transpose(1, 2).flatten(2)), weights

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], return_attention: bool = False
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch heads tokens tokens"] | None]:
        """Tokens, and the attention weights if ``return_attention``."""
        mixed, weights = self.attend(x, return_attention)
        x = self.norm1(x + self._drop(mixed))
        hidden = self._drop(self.activation(self.up(x)))
        return self.norm2(x + self._drop(self.down(hidden))), weights

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class Encoder(nn.Module):
    """A stack of :class:`EncoderLayer` with a final norm (arguments as there, ``layers`` of them)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        layers: int,
        ff: int,
        attention: str | TokenAttention,
        dropout: float,
        activation: str,
    ) -> None:
        super().__init__()
        check_positive(layers=layers)
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, ff, attention, dropout, activation) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens in, tokens out."""
        for layer in self.layers:
            x, _ = layer(x)
        return self.norm(x)

    def forward_with_attention(
        self, x: Float[Tensor, "batch tokens dim"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], list[Float[Tensor, "batch heads tokens tokens"]]]:
        """Tokens, and every layer's attention weights."""
        maps = []
        for layer in self.layers:
            x, weights = layer(x, return_attention=True)
            maps.append(weights)
        return self.norm(x), maps


def positions(tokens: int, dim: int) -> Float[Tensor, "tokens dim"]:
    """Sinusoidal position codes: sine in the even channels, cosine in the odd ones (arXiv 1706.03762, section 3.5)."""
    time = torch.arange(tokens).float().unsqueeze(1)
    angle = time * torch.exp(torch.arange(0, dim, 2).float() * -(math.log(10000.0) / dim))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]


class TimeEmbedding(nn.Module):
    """Time steps as tokens: values through a circular convolution of width 3, plus calendar and position codes.

    ``steps`` is how many positions there are codes for; none are added where it is ``None``.
    """

    position: Tensor | None

    def __init__(self, variates: int, dim: int, marks: int, steps: int | None, dropout: float) -> None:
        super().__init__()
        self.value = nn.Conv1d(variates, dim, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.value.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.calendar = nn.Linear(marks, dim, bias=False) if marks else None
        self.register_buffer("position", None if steps is None else positions(steps, dim), persistent=False)
        self.dropout = dropout

    def forward(self, series: Tensor, marks: Tensor | None) -> Tensor:
        """(batch, steps, variates) and (batch, steps, marks) to (batch, steps, dim)."""
        x = self.value(series.transpose(1, 2)).transpose(1, 2)
        if self.position is not None:
            x = x + self.position[: series.shape[1]].to(series.dtype)
        if self.calendar is not None and marks is not None:
            x = x + self.calendar(marks.to(series.dtype))
        return F.dropout(x, self.dropout, self.training)


class DecoderLayer(nn.Module):
    """Post-norm decoder layer: causal self-attention, attention to the encoder's tokens, feed-forward."""

    def __init__(self, dim: int, heads: int, ff: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.activation = ACTIVATIONS[activation]
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.cross_query = nn.Linear(dim, dim)
        self.cross_kv = nn.Linear(dim, 2 * dim)
        self.cross_out = nn.Linear(dim, dim)
        self.up = nn.Linear(dim, ff)
        self.down = nn.Linear(ff, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], memory: Float[Tensor, "batch steps dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """The decoder's tokens, informed by the encoder's."""
        query, key, value = self._heads(self.qkv(x), 3)
        x = self.norm1(x + self._drop(self.out(self._attend(query, key, value, causal=True))))
        (query,) = self._heads(self.cross_query(x), 1)
        key, value = self._heads(self.cross_kv(memory), 2)
        x = self.norm2(x + self._drop(self.cross_out(self._attend(query, key, value, causal=False))))
        return self.norm3(x + self._drop(self.down(self._drop(self.activation(self.up(x))))))

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal)
        return out.transpose(1, 2).flatten(2)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)
