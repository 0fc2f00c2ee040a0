"""iTransformer: one token per variate, attention across variates (arXiv 2310.06625).

A series of shape (batch, time, variates) is read the other way round: the whole look-back window of a variate is one
token. Attention then relates variates to each other, the feed-forward layers work on the time axis, and any number of
variates fits the same weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.parts.series_attention import TokenAttention, dropout
from everyformer.parts.series_layers import Encoder, check_inputs, check_positive, normalise_window


class Inverted(nn.Module):
    """A forecaster around any token model: variates become tokens, tokens become forecasts (arXiv 2310.06625, eq. 1).

    Args:
        encoder: module from tokens (batch, tokens, dim) to the same shape; blind to the order of tokens if the forecast
            is to follow the order of variates.
        lookback: steps of history, at least 1.
        horizon: steps to forecast, at least 1.
        dim: width of a token.
        marks: calendar features of the history; each becomes a token by the variates' own embedding.
        future: covariates known over the horizon; each becomes a token by an embedding of its own.
        normalise: give each window of each variate zero mean and unit deviation, and undo it on the forecast.
        dropout: on the embedded tokens.

    Raises:
        ValueError: a size below 1 (``marks`` and ``future``: below 0).
    """

    def __init__(
        self,
        encoder: nn.Module,
        lookback: int,
        horizon: int,
        dim: int,
        marks: int = 0,
        future: int = 0,
        normalise: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_positive(lookback=lookback, horizon=horizon, dim=dim)
        for name, count in (("marks", marks), ("future", future)):
            if count < 0:
                raise ValueError(f"{name} must be at least 0, got {count}")
        self.lookback = lookback
        self.horizon = horizon
        self.marks = marks
        self.future = future
        self.normalise = normalise
        self.dropout = dropout
        self.embed = nn.Linear(lookback, dim)
        self.embed_future = nn.Linear(horizon, dim) if future else None
        self.encoder = encoder
        self.head = nn.Linear(dim, horizon)

    def tokens(self, series: Tensor, marks: Tensor | None, future: Tensor | None) -> Float[Tensor, "batch tokens dim"]:
        """Embedded tokens: the variates first, then calendar features, then future covariates."""
        steps = series if marks is None else torch.cat([series, marks.to(series.dtype)], dim=2)
        tokens = self.embed(steps.transpose(1, 2))
        if self.embed_future is not None and future is not None:
            tokens = torch.cat([tokens, self.embed_future(future.to(series.dtype).transpose(1, 2))], dim=1)
        return dropout(tokens, self.dropout, self.training)

    def forward(
        self,
        series: Float[Tensor, "batch lookback variates"],
        marks: Float[Tensor, "batch lookback marks"] | None = None,
        future: Float[Tensor, "batch horizon future"] | None = None,
    ) -> Float[Tensor, "batch horizon variates"]:
        """The forecast of every variate; any number of variates is accepted.

        Raises:
            ValueError: an input that does not have the shape the model was built for.
        """
        return self._forecast(series, marks, future, self.encoder)

    def _forecast(
        self, series: Tensor, marks: Tensor | None, future: Tensor | None, encoder: Callable[[Tensor], Tensor]
    ) -> Tensor:
        steps, widths = (self.lookback, self.horizon), (self.marks, self.future)
        check_inputs(series, marks, future, steps=steps, widths=widths)
        variates = series.shape[2]
        if not self.normalise:
            return self.head(encoder(self.tokens(series, marks, future))[:, :variates]).transpose(1, 2)
        window, mean, deviation = normalise_window(series)
        forecast = self.head(encoder(self.tokens(window, marks, future))[:, :variates]).transpose(1, 2)
        return forecast * deviation + mean


class ITransformer(Inverted):
    """iTransformer: attention across variates, feed-forward along time (arXiv 2310.06625, section 3).

    Equivariant under permutation of the variates, and free in their number.

    Args:
        lookback: steps of history, at least 1.
        horizon: steps to forecast, at least 1.
        dim: width of a token, a multiple of ``heads``.
        heads: attention heads.
        layers: encoder layers.
        ff: width of the feed-forward part.
        marks: number of calendar features of the history, each one token.
        future: number of covariates known over the horizon, each one token.
        attention: ``"full"``, ``"flow"``, ``"prob"`` or a callable with the signature of
            ``F.scaled_dot_product_attention(query, key, value, dropout_p=...)``.
        normalise: per-window instance normalisation of each variate.
        dropout: on tokens, attention weights and both branches of a layer.
        activation: ``"gelu"`` or ``"relu"``.

    Raises:
        ValueError: a size below 1, ``dim`` not a multiple of ``heads``, an unknown attention or activation.
    """

    encoder: Encoder

    def __init__(
        self,
        lookback: int,
        horizon: int,
        dim: int = 512,
        heads: int = 8,
        layers: int = 2,
        ff: int = 512,
        marks: int = 0,
        future: int = 0,
        attention: str | TokenAttention = "full",
        normalise: bool = True,
        dropout: float = 0.1,
        activation: str = "gelu",
    ) -> None:
        encoder = Encoder(dim, heads, layers, ff, attention, dropout, activation)
        super().__init__(encoder, lookback, horizon, dim, marks, future, normalise, dropout)

    def forward(  # type: ignore[override]
        self,
        series: Float[Tensor, "batch lookback variates"],
        marks: Float[Tensor, "batch lookback marks"] | None = None,
        future: Float[Tensor, "batch horizon future"] | None = None,
        return_attention: bool = False,
    ) -> (
        Float[Tensor, "batch horizon variates"]
        | tuple[Float[Tensor, "batch horizon variates"], list[Float[Tensor, "batch heads tokens tokens"]]]
    ):
        """The forecast; with ``return_attention`` also every layer's weights (tokens: variates, marks, future).

        Raises:
            ValueError: an input that does not have the shape the model was built for.
        """
        if not return_attention:
            return self._forecast(series, marks, future, self.encoder)
        maps: list[Tensor] = []

        def encode(tokens: Tensor) -> Tensor:
            encoded, weights = self.encoder.forward_with_attention(tokens)
            maps.extend(weights)
            return encoded

        return self._forecast(series, marks, future, encode), maps


def invert(factory: Callable[[], nn.Module]) -> Callable[..., Inverted]:
    """Turn a factory of token models into a factory of forecasters with variates as tokens.

    ``factory()`` gives a module from (batch, tokens, dim) to the same shape, such as a transformer encoder. The result
    takes the arguments of :class:`Inverted` after ``encoder``; each call builds new weights.

        build = invert(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, batch_first=True), 2))
        model = build(lookback=96, horizon=24, dim=64)

    Raises:
        TypeError: ``factory`` is not callable, or (from the result) does not give a module.
    """
    if not callable(factory):
        raise TypeError(f"factory must be callable, got {type(factory).__name__}")

    def build(*args: object, **kwargs: object) -> Inverted:
        encoder = factory()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"factory must give a torch.nn.Module, got {type(encoder).__name__}")
        return Inverted(encoder, *args, **kwargs)  # type: ignore[arg-type]

    return build
