"""iTransformer: one token per variate, attention across variates (arXiv 2310.06625).

A series of shape (batch, time, variates) is read the other way round: the whole look-back window of a variate is one
token. Attention then relates variates to each other, the feed-forward layers work on the time axis, and any number of
variates fits the same weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.itransformer.attention import TokenAttention, dropout, resolve, with_weights

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
        attention: name or callable, see :mod:`.attention`.
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
