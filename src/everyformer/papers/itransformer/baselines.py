"""What iTransformer is compared with: the transformer it inverts, and a linear model.

Both are called like :class:`~.model.ITransformer`, ``model(series, marks, future)``, so one harness trains all of them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.itransformer.attention import TokenAttention
from everyformer.papers.itransformer.model import (
    ACTIVATIONS,
    Encoder,
    check_inputs,
    check_positive,
    normalise_window,
)


def positions(tokens: int, dim: int) -> Float[Tensor, "tokens dim"]:
    """Sinusoidal position codes: sine in the even channels, cosine in the odd ones (arXiv 1706.03762, section 3.5)."""
    time = torch.arange(tokens).float().unsqueeze(1)
    angle = time * torch.exp(torch.arange(0, dim, 2).float() * -(math.log(10000.0) / dim))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]


class TimeEmbedding(nn.Module):
    """Time steps as tokens: values through a circular convolution of width 3, plus calendar and position codes."""

    position: Tensor

    def __init__(self, variates: int, dim: int, marks: int, steps: int, dropout: float) -> None:
        super().__init__()
        self.value = nn.Conv1d(variates, dim, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.value.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.calendar = nn.Linear(marks, dim, bias=False) if marks else None
        self.register_buffer("position", positions(steps, dim), persistent=False)
        self.dropout = dropout

    def forward(self, series: Tensor, marks: Tensor | None) -> Tensor:
        """(batch, steps, variates) and (batch, steps, marks) to (batch, steps, dim)."""
        x = self.value(series.transpose(1, 2)).transpose(1, 2) + self.position[: series.shape[1]].to(series.dtype)
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


class VanillaTransformer(nn.Module):
    """The encoder-decoder transformer that iTransformer inverts: one token per time step.

    As in the authors' repository: circular convolution of width 3, calendar and sinusoidal position codes, post-norm
    layers; the decoder starts from the last ``label`` observations followed by zeros for the horizon. The encoder's
    attention is swappable, the decoder's is full and causal. ``normalise`` (theirs has none) adds iTransformer's
    instance normalisation, so that the inversion and the normalisation can be told apart.

    Args:
        lookback: steps of history.
        horizon: steps to forecast.
        variates: number of variates, fixed.
        dim: width of a token, a multiple of ``heads``.
        heads: attention heads.
        layers: encoder layers.
        decoder_layers: decoder layers.
        ff: width of the feed-forward part.
        marks: calendar features; the forecast then needs those of the history and of the horizon (``future``).
        label: observations the decoder starts from, at most ``lookback``.
        attention: of the encoder, as for :class:`~.model.ITransformer`.
        normalise: per-window instance normalisation.
        dropout: on tokens, attention weights and branches.
        activation: ``"gelu"`` or ``"relu"``.

    Raises:
        ValueError: a size below 1, ``label`` outside [0, lookback], ``dim`` not a multiple of ``heads``.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        variates: int,
        dim: int = 512,
        heads: int = 8,
        layers: int = 2,
        decoder_layers: int = 1,
        ff: int = 2048,
        marks: int = 0,
        label: int = 48,
        attention: str | TokenAttention = "full",
        normalise: bool = False,
        dropout: float = 0.1,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        check_positive(lookback=lookback, horizon=horizon, variates=variates, decoder_layers=decoder_layers)
        if not 0 <= label <= lookback:
            raise ValueError(f"label must be in [0, lookback={lookback}], got {label}")
        if marks < 0:
            raise ValueError(f"marks must be at least 0, got {marks}")
        self.lookback = lookback
        self.horizon = horizon
        self.variates = variates
        self.marks = marks
        self.future = marks
        self.label = label
        self.normalise = normalise
        self.encoder = Encoder(dim, heads, layers, ff, attention, dropout, activation)
        self.embed = TimeEmbedding(variates, dim, marks, lookback, dropout)
        self.embed_decoder = TimeEmbedding(variates, dim, marks, label + horizon, dropout)
        self.decoder = nn.ModuleList(DecoderLayer(dim, heads, ff, dropout, activation) for _ in range(decoder_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, variates)

    def decode(
        self,
        start: Float[Tensor, "batch label_horizon variates"],
        marks: Float[Tensor, "batch label_horizon marks"] | None,
        memory: Float[Tensor, "batch lookback dim"],
    ) -> Float[Tensor, "batch horizon variates"]:
        """The forecast from the decoder's input (observations, then zeros) and the encoder's tokens."""
        x = self.embed_decoder(start, marks)
        for layer in self.decoder:
            x = layer(x, memory)
        return self.head(self.norm(x[:, -self.horizon :]))

    def forward(
        self,
        series: Float[Tensor, "batch lookback variates"],
        marks: Float[Tensor, "batch lookback marks"] | None = None,
        future: Float[Tensor, "batch horizon marks"] | None = None,
    ) -> Float[Tensor, "batch horizon variates"]:
        """The forecast; ``future`` holds the calendar features of the horizon.

        Raises:
            ValueError: an input that does not have the shape the model was built for.
        """
        steps, widths = (self.lookback, self.horizon), (self.marks, self.future)
        check_inputs(series, marks, future, steps=steps, widths=widths)
        if series.shape[2] != self.variates:
            raise ValueError(f"series must have {self.variates} variates, got {series.shape[2]}")
        if not self.normalise:
            return self._forecast(series, marks, future)
        window, mean, deviation = normalise_window(series)
        return self._forecast(window, marks, future) * deviation + mean

    def _forecast(self, series: Tensor, marks: Tensor | None, future: Tensor | None) -> Tensor:
        memory = self.encoder(self.embed(series, marks))
        recent = self.lookback - self.label
        start = F.pad(series[:, recent:], (0, 0, 0, self.horizon))
        decoder_marks = None if marks is None or future is None else torch.cat([marks[:, recent:], future], dim=1)
        return self.decode(start, decoder_marks, memory)


class DLinear(nn.Module):
    """A linear map of trend and remainder, shared by all variates (Zeng et al., arXiv 2205.13504).

    The trend is a moving average with the ends repeated. Both maps start as averages over the look-back.

    Args:
        lookback: steps of history.
        horizon: steps to forecast.
        kernel: width of the moving average, odd.

    Raises:
        ValueError: a size below 1 or an even ``kernel``.
    """

    def __init__(self, lookback: int, horizon: int, kernel: int = 25) -> None:
        super().__init__()
        check_positive(lookback=lookback, horizon=horizon, kernel=kernel)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        self.lookback = lookback
        self.horizon = horizon
        self.marks = 0
        self.future = 0
        self.kernel = kernel
        self.seasonal = nn.Linear(lookback, horizon)
        self.trend = nn.Linear(lookback, horizon)
        for part in (self.seasonal, self.trend):
            nn.init.constant_(part.weight, 1 / lookback)

    def forward(
        self,
        series: Float[Tensor, "batch lookback variates"],
        marks: None = None,
        future: None = None,
    ) -> Float[Tensor, "batch horizon variates"]:
        """The forecast of every variate; any number of variates is accepted, calendar features are not.

        Raises:
            ValueError: an input that does not have the shape the model was built for.
        """
        check_inputs(series, marks, future, steps=(self.lookback, self.horizon), widths=(0, 0))
        x = series.transpose(1, 2)
        half = self.kernel // 2
        trend = F.avg_pool1d(F.pad(x, (half, half), mode="replicate"), self.kernel, stride=1)
        return (self.seasonal(x - trend) + self.trend(trend)).transpose(1, 2)
