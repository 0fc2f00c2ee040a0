"""The encoder-decoder transformer with one token per time step, which inverted and sparse forecasters start from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.parts.series_attention import TokenAttention
from everyformer.parts.series_layers import (
    DecoderLayer,
    Encoder,
    TimeEmbedding,
    check_inputs,
    check_positive,
    normalise_window,
)


class VanillaTransformer(nn.Module):
    """An encoder-decoder transformer with one token per time step, as in thuml/Time-Series-Library.

    Circular convolution of width 3, calendar and sinusoidal position codes, post-norm layers; the decoder starts from
    the last ``label`` observations followed by zeros for the horizon. The encoder's attention is swappable, the
    decoder's is full and causal. ``normalise`` (theirs has none) adds the instance normalisation of later forecasters.

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
        attention: of the encoder, ``"full"``, ``"flow"``, ``"prob"`` or a callable.
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
