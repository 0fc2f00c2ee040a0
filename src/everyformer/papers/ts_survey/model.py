"""The survey's forecasters in one harness: each is called ``model(series, marks, future)`` and gives a forecast.

One token per time step: vanilla (see :mod:`everyformer.parts.series_vanilla`), Informer, Reformer, LogSparse; between
layers decomposed: Autoformer, FEDformer-lite (:mod:`.autoformer`); per patch: PatchTST; per variate: iTransformer; no
transformer: DLinear (:mod:`.decomposition`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.ts_survey.attention import LogSparseLayer, LSHLayer
from everyformer.papers.ts_survey.autoformer import Autoformer, FEDformerLite
from everyformer.papers.ts_survey.decomposition import DLinear
from everyformer.parts.series_attention import dropout, prob_attention
from everyformer.parts.series_layers import (
    Encoder,
    EncoderLayer,
    TimeEmbedding,
    check_inputs,
    check_positive,
    normalise_window,
    positions,
)
from everyformer.parts.series_vanilla import VanillaTransformer


class Distil(nn.Module):
    """Half as many tokens: circular convolution of width 3, batch norm, ELU, max pool (arXiv 2012.07436, eq. 5).

    The convolution's padding of 2 lengthens the series by two first, a quirk of the authors' code that is kept.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, padding=2, padding_mode="circular")
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch fewer dim"]:
        """About half of the tokens, and one."""
        x = F.elu(self.norm(self.conv(x.transpose(1, 2))))
        return F.max_pool1d(x, 3, stride=2, padding=1).transpose(1, 2)


class DistillingEncoder(Encoder):
    """An encoder that halves its tokens between layers; arguments as for :class:`Encoder`."""

    def __init__(self, dim: int, heads: int, layers: int, *rest: Any) -> None:
        super().__init__(dim, heads, layers, *rest)
        self.distil = nn.ModuleList(Distil(dim) for _ in range(layers - 1))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch fewer dim"]:
        """Tokens in, fewer tokens out."""
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else self.distil[index - 1](x))[0]
        return self.norm(x)


class Informer(VanillaTransformer):
    """Informer: attention of the few peaked queries in an encoder that distils; one-shot decoder (arXiv 2012.07436).

    The decoder's attention is full here (short beside the history). Arguments as for :class:`VanillaTransformer`
    without ``attention`` and ``normalise``, and ``factor``: of keys sampled and queries chosen, times ``ceil(ln n)``.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        variates: int,
        dim: int = 512,
        heads: int = 8,
        layers: int = 2,
        ff: int = 2048,
        marks: int = 0,
        label: int = 48,
        factor: int = 3,
        dropout: float = 0.1,
    ) -> None:
        check_positive(factor=factor)
        super().__init__(lookback, horizon, variates, dim, heads, layers, 1, ff, marks, label, dropout=dropout)
        attention = functools.partial(prob_attention, factor=factor)
        self.encoder = DistillingEncoder(dim, heads, layers, ff, attention, dropout, "gelu")


class OneStream(nn.Module):
    """Tokens of the history, then tokens of zeros for the horizon, through one stack; the last are the forecast.

    Args:
        lookback: steps of history.
        horizon: steps to forecast.
        variates: number of variates, fixed.
        layer: called without arguments for each layer.
        dim: width of a token.
        layers: how many layers.
        marks: calendar features of the history and of the horizon.
        dropout: on the embedded tokens.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        variates: int,
        layer: Callable[[], EncoderLayer],
        dim: int,
        layers: int,
        marks: int,
        dropout: float,
    ) -> None:
        super().__init__()
        check_positive(lookback=lookback, horizon=horizon, variates=variates, layers=layers)
        self.lookback, self.horizon, self.variates, self.marks = lookback, horizon, variates, marks
        self.embed = TimeEmbedding(variates, dim, marks, lookback + horizon, dropout)
        self.layers = nn.ModuleList(layer() for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, variates)

    def forward(
        self,
        series: Float[Tensor, "batch lookback variates"],
        marks: Float[Tensor, "batch lookback marks"] | None = None,
        future: Float[Tensor, "batch horizon marks"] | None = None,
    ) -> Float[Tensor, "batch horizon variates"]:
        """The forecast.

        Raises:
            ValueError: an input that does not have the shape the model was built for.
        """
        check_inputs(series, marks, future, steps=(self.lookback, self.horizon), widths=(self.marks, self.marks))
        if series.shape[2] != self.variates:
            raise ValueError(f"series must have {self.variates} variates, got {series.shape[2]}")
        calendar = None if marks is None or future is None else torch.cat([marks, future], dim=1)
        x = self.embed(F.pad(series, (0, 0, 0, self.horizon)), calendar)
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(self.norm(x[:, -self.horizon :]))  # type: ignore[no-any-return]


class InvertedTransformer(nn.Module):
    """iTransformer: the history of a variate is one token, and so is that of a calendar feature (arXiv 2310.06625)."""

    def __init__(
        self, lookback: int, horizon: int, dim: int, heads: int, layers: int, ff: int, marks: int, dropout: float
    ) -> None:
        super().__init__()
        check_positive(lookback=lookback, horizon=horizon)
        self.lookback, self.horizon, self.marks, self.dropout = lookback, horizon, marks, dropout
        self.embed = nn.Linear(lookback, dim)
        self.encoder = Encoder(dim, heads, layers, ff, "full", dropout, "gelu")
        self.head = nn.Linear(dim, horizon)

    def forward(
        self,
        series: Float[Tensor, "batch lookback variates"],
        marks: Float[Tensor, "batch lookback marks"] | None = None,
        future: Float[Tensor, "batch horizon marks"] | None = None,
    ) -> Float[Tensor, "batch horizon variates"]:
        """The forecast of any number of variates; ``future`` is not looked at."""
        check_inputs(series, marks, None, steps=(self.lookback, self.horizon), widths=(self.marks, 0))
        window, mean, deviation = normalise_window(series)
        steps = window if marks is None else torch.cat([window, marks.to(window.dtype)], dim=2)
        tokens = self.encoder(dropout(self.embed(steps.transpose(1, 2)), self.dropout, self.training))
        return self.head(tokens[:, : series.shape[2]]).transpose(1, 2) * deviation + mean  # type: ignore[no-any-return]


class PatchTST(nn.Module):
    """PatchTST: patches of one variate at a time are the tokens, after instance normalisation (arXiv 2211.14730).

    Args:
        lookback: steps of history, at least ``patch``.
        horizon: steps to forecast.
        dim: width of a token, a multiple of ``heads``.
        heads: attention heads.
        layers: encoder layers.
        ff: width of the feed-forward part.
        patch: steps in a patch.
        stride: steps between patches; the last value is repeated as often at the end.
        dropout: on tokens, attention weights, branches and the head.
        activation: ``"gelu"`` or ``"relu"``.

    Raises:
        ValueError: a size below 1, a patch longer than the look-back, or a layer's argument out of range.
    """

    position: Tensor

    def __init__(
        self,
        lookback: int,
        horizon: int,
        dim: int = 512,
        heads: int = 8,
        layers: int = 2,
        ff: int = 2048,
        patch: int = 16,
        stride: int = 8,
        dropout: float = 0.1,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        check_positive(lookback=lookback, horizon=horizon, layers=layers, patch=patch, stride=stride)
        if patch > lookback:
            raise ValueError(f"patch must be at most lookback={lookback}, got {patch}")
        self.lookback, self.horizon, self.patch, self.stride, self.dropout = lookback, horizon, patch, stride, dropout
        patches = (lookback + stride - patch) // stride + 1
        self.embed = nn.Linear(patch, dim, bias=False)
        self.register_buffer("position", positions(patches, dim), persistent=False)
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, ff, "full", dropout, activation) for _ in range(layers))
        self.norm = nn.BatchNorm1d(dim)
        self.head = nn.Linear(dim * patches, horizon)

    def forward(
        self,
        series: Float[Tensor, "batch lookback variates"],
        marks: Float[Tensor, "batch lookback marks"] | None = None,
        future: Float[Tensor, "batch horizon marks"] | None = None,
    ) -> Float[Tensor, "batch horizon variates"]:
        """The forecast of any number of variates; calendar features are not looked at."""
        check_inputs(series, None, None, steps=(self.lookback, self.horizon), widths=(0, 0))
        window, mean, deviation = normalise_window(series)
        padded = F.pad(window.transpose(1, 2), (0, self.stride), mode="replicate")
        patches = padded.unfold(2, self.patch, self.stride).flatten(0, 1)
        x = dropout(self.embed(patches) + self.position.to(series.dtype), self.dropout, self.training)
        for layer in self.layers:
            x, _ = layer(x)
        x = self.norm(x.transpose(1, 2)).flatten(1)
        forecast = dropout(self.head(x), self.dropout, self.training).unflatten(0, (len(series), -1))
        return forecast.transpose(1, 2) * deviation + mean  # type: ignore[no-any-return]


MODELS = (
    "vanilla", "informer", "reformer", "logsparse", "autoformer", "fedformer_lite", "patchtst", "itransformer",
    "dlinear",
)  # fmt: skip
POINTWISE = ("vanilla", "informer", "reformer", "logsparse")


def create(
    name: str,
    lookback: int,
    horizon: int,
    variates: int,
    *,
    dim: int = 64,
    heads: int = 4,
    layers: int = 2,
    ff: int = 128,
    marks: int = 0,
    dropout: float = 0.1,
    decomposition: bool = True,
) -> nn.Module:
    """One of ``MODELS`` in common sizes; the decoder of those that have one starts from min(48, lookback / 2) steps.

    ``decomposition`` counts for Autoformer and FEDformer-lite alone, which have it inside.

    Raises:
        ValueError: an unknown name, or a size that the model does not take.
    """
    whole: dict[str, Any] = {"lookback": lookback, "horizon": horizon}
    sizes: dict[str, Any] = {"dim": dim, "layers": layers, "ff": ff, "dropout": dropout}
    steps = {**whole, "variates": variates, "marks": marks}
    label: dict[str, Any] = {"label": min(48, lookback // 2)}
    if name in ("vanilla", "informer"):
        kind = VanillaTransformer if name == "vanilla" else Informer
        return kind(**steps, **sizes, **label, heads=heads)
    if name in ("reformer", "logsparse"):
        block = LSHLayer if name == "reformer" else LogSparseLayer
        return OneStream(**steps, dim=dim, layers=layers, dropout=dropout, layer=lambda: block(dim, heads, ff, dropout))
    if name == "autoformer":
        return Autoformer(**steps, **sizes, **label, decomposition=decomposition)
    if name == "fedformer_lite":
        return FEDformerLite(**steps, **sizes, **label, heads=heads, decomposition=decomposition)
    if name == "patchtst":
        return PatchTST(**whole, **sizes, heads=heads)
    if name == "itransformer":
        return InvertedTransformer(**whole, **sizes, heads=heads, marks=marks)
    if name == "dlinear":
        return DLinear(lookback, horizon)
    raise ValueError(f"name must be one of {', '.join(MODELS)}, got {name!r}")
