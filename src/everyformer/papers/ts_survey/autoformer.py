"""Forecasters that decompose between their layers: Autoformer (arXiv 2106.13008), and a light FEDformer (2201.12740).

Both share one frame: a mixer along time, a feed-forward part without biases, and after each the trend taken away; the
decoder adds up the trends it takes. With ``decomposition=False`` neither trend nor its path is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.ts_survey.decomposition import SeriesDecomposition
from everyformer.parts.series_attention import dropout
from everyformer.parts.series_layers import ACTIVATIONS, TimeEmbedding, check_inputs, check_positive

Mixer = Callable[[int, int], nn.Module]


def auto_correlation(
    query: Float[Tensor, "batch time dim"],
    key: Float[Tensor, "batch steps dim"],
    value: Float[Tensor, "batch steps dim"],
    factor: int = 1,
    shared: bool = False,
) -> Float[Tensor, "batch time dim"]:
    """Values rolled back by the delays at which queries and keys agree most (arXiv 2106.13008, section 3.2).

    ``floor(factor * ln(time))`` delays are chosen by the correlation averaged over channels (heads play no part), for
    each sample or, with ``shared``, on the mean of the batch. Keys and values are padded with zeros or cut to the
    queries' time. A delay is counted from keys to queries and values are rolled the other way, as in equation 6 and the
    authors' code; for what repeats itself it is the same.
    """
    steps = query.shape[1]
    extra = steps - key.shape[1]
    key, value = (F.pad(x, (0, 0, 0, extra)) for x in (key, value))  # a negative pad cuts
    kind = query.dtype
    query, key, value = query.float(), key.float(), value.float()  # there is no FFT in bfloat16

    agreement = (torch.fft.rfft(query, dim=1) * torch.fft.rfft(key, dim=1).conj()).mean(dim=-1)
    correlation = torch.fft.irfft(agreement, n=steps, dim=1)
    count = min(steps, max(1, int(factor * math.log(steps))))
    if shared:
        delays = correlation.mean(dim=0).topk(count).indices.expand(len(correlation), -1)
    else:
        delays = correlation.topk(count, dim=-1).indices
    weights = correlation.gather(1, delays).softmax(dim=-1)
    # The weighted sum of rolled values is one more correlation, with a series that is zero but at the delays.
    picked = torch.zeros_like(correlation).scatter(1, delays, weights)
    spectrum = torch.fft.rfft(value, dim=1) * torch.fft.rfft(picked, dim=1).conj().unsqueeze(-1)
    return torch.fft.irfft(spectrum, n=steps, dim=1).to(kind)


class AutoCorrelation(nn.Module):
    """Auto-correlation with its projections; delays are shared by the batch in training, as the authors have it."""

    def __init__(self, dim: int, factor: int) -> None:
        super().__init__()
        check_positive(factor=factor)
        self.factor = factor
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch time dim"], memory: Float[Tensor, "batch steps dim"]) -> Tensor:
        """Tokens informed by ``memory``, which is ``x`` itself in self-attention."""
        query, key, value = self.query(x), self.key(memory), self.value(memory)
        return self.out(auto_correlation(query, key, value, self.factor, shared=self.training))  # type: ignore[no-any-return]


class FourierMixing(nn.Module):
    """A few random frequencies, each with a complex matrix per head, and back to time (arXiv 2201.12740, section 3.2).

    Where ``memory`` is another series, the queries' frequencies first attend to those of the memory.
    """

    modes: Tensor
    memory_modes: Tensor

    def __init__(self, dim: int, heads: int, steps: int, memory_steps: int, most: int = 64) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}")
        self.heads = heads
        for name, length in (("modes", steps), ("memory_modes", memory_steps)):
            chosen = torch.randperm(max(1, length // 2))[: min(most, max(1, length // 2))]
            self.register_buffer(name, chosen.sort().values)
        width = dim // heads
        self.weight = nn.Parameter(torch.randn(heads, len(self.modes), width, width, 2) / math.sqrt(2 * width))
        self.query = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def _spectrum(self, x: Tensor, modes: Tensor) -> Tensor:
        heads = self.query(x).float().unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return torch.fft.rfft(heads, dim=2, norm="ortho")[:, :, modes]

    def forward(self, x: Float[Tensor, "batch time dim"], memory: Float[Tensor, "batch steps dim"]) -> Tensor:
        """Tokens informed by ``memory``, which is ``x`` itself in self-attention."""
        chosen = self._spectrum(x, self.modes)
        if memory is not x:
            theirs = self._spectrum(memory, self.memory_modes)
            agreement = (chosen @ theirs.mH).abs().softmax(dim=-1)
            chosen = agreement.to(theirs.dtype) @ theirs
        weight = torch.view_as_complex(self.weight.float().contiguous())
        mixed = torch.einsum("bhmi,hmio->bhmo", chosen, weight)
        whole = mixed.new_zeros(*mixed.shape[:2], x.shape[1] // 2 + 1, mixed.shape[-1])
        whole = whole.index_copy(2, self.modes, mixed)
        back = torch.fft.irfft(whole, n=x.shape[1], dim=2, norm="ortho")
        return self.out(back.transpose(1, 2).flatten(2).to(x.dtype))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """A layer of the encoder, or with ``cross`` of the decoder: each branch is added, then its trend taken away."""

    def __init__(
        self,
        dim: int,
        ff: int,
        mixer: nn.Module,
        cross: nn.Module | None,
        decomposition: SeriesDecomposition | None,
        dropout: float,
        activation: str,
    ) -> None:
        super().__init__()
        self.mixer, self.cross, self.decomposition = mixer, cross, decomposition
        self.up = nn.Linear(dim, ff, bias=False)
        self.down = nn.Linear(ff, dim, bias=False)
        self.activation, self.dropout = ACTIVATIONS[activation], dropout

    def forward(
        self, x: Float[Tensor, "batch time dim"], memory: Float[Tensor, "batch steps dim"] | None = None
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time dim"] | None]:
        """Tokens, and the sum of the trends that were taken from them (``None`` without decomposition)."""
        x, trend = self._split(x + self._drop(self.mixer(x, x)), None)
        if self.cross is not None:
            x, trend = self._split(x + self._drop(self.cross(x, memory)), trend)
        return self._split(x + self._drop(self.down(self._drop(self.activation(self.up(x))))), trend)

    def _split(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.decomposition is None:
            return x, None
        seasonal, trend = self.decomposition(x)
        return seasonal, trend if before is None else before + trend

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class SeasonalNorm(nn.LayerNorm):
    """LayerNorm of each token, less its mean over time."""

    def forward(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
        """Normed tokens that average to zero over time."""
        normed = super().forward(x)
        return normed - normed.mean(dim=1, keepdim=True)


class Autoformer(nn.Module):
    """Autoformer: auto-correlation instead of attention, decomposition inside every layer (arXiv 2106.13008).

    Args:
        lookback: steps of history, at least ``kernel``.
        horizon: steps to forecast.
        variates: number of variates, fixed.
        dim: width of a token.
        layers: encoder layers.
        decoder_layers: decoder layers.
        ff: width of the feed-forward part.
        marks: calendar features of the history and of the horizon.
        label: observations the decoder starts from, at most ``lookback``; with the horizon at least ``kernel`` steps.
        kernel: of the decomposition, as for :class:`SeriesDecomposition`.
        factor: how many delays are chosen, see :func:`auto_correlation`.
        decomposition: take trends away, inside and before the decoder.
        dropout: on tokens and branches.
        activation: ``"gelu"`` or ``"relu"``.
        mixer: from the time of queries and of keys to a module ``(x, memory) -> x``; auto-correlation by default.

    Raises:
        ValueError: a size below 1, ``label`` outside [0, lookback], a kernel that does not fit, an unknown activation.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        variates: int,
        dim: int = 512,
        layers: int = 2,
        decoder_layers: int = 1,
        ff: int = 2048,
        marks: int = 0,
        label: int = 48,
        kernel: int | Sequence[int] = 25,
        factor: int = 1,
        decomposition: bool = True,
        dropout: float = 0.1,
        activation: str = "gelu",
        mixer: Mixer | None = None,
    ) -> None:
        super().__init__()
        check_positive(lookback=lookback, horizon=horizon, variates=variates, dim=dim, ff=ff)
        check_positive(layers=layers, decoder_layers=decoder_layers)
        if not 0 <= label <= lookback:
            raise ValueError(f"label must be in [0, lookback={lookback}], got {label}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
        self.lookback, self.horizon, self.variates = lookback, horizon, variates
        self.marks, self.label = marks, label
        self.decomposition = SeriesDecomposition(kernel) if decomposition else None
        decoded = label + horizon
        if self.decomposition is not None and max(self.decomposition.kernels) > min(lookback, decoded):
            raise ValueError(f"kernel must be at most lookback={lookback} and label + horizon={decoded}, got {kernel}")

        def built(time: int, steps: int) -> nn.Module:
            return AutoCorrelation(dim, factor) if mixer is None else mixer(time, steps)

        rest = (self.decomposition, dropout, activation)
        self.embed = TimeEmbedding(variates, dim, marks, None, dropout)
        self.embed_decoder = TimeEmbedding(variates, dim, marks, None, dropout)
        self.encoder = nn.ModuleList(Layer(dim, ff, built(lookback, lookback), None, *rest) for _ in range(layers))
        self.encoder_norm = SeasonalNorm(dim)
        self.decoder = nn.ModuleList(
            Layer(dim, ff, built(decoded, decoded), built(decoded, lookback), *rest) for _ in range(decoder_layers)
        )
        self.decoder_norm = SeasonalNorm(dim)
        self.trends = nn.ModuleList(
            nn.Conv1d(dim, variates, 3, padding=1, padding_mode="circular", bias=False)
            for _ in range(decoder_layers if decomposition else 0)
        )
        self.head = nn.Linear(dim, variates)

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
        check_inputs(series, marks, future, steps=(self.lookback, self.horizon), widths=(self.marks, self.marks))
        if series.shape[2] != self.variates:
            raise ValueError(f"series must have {self.variates} variates, got {series.shape[2]}")
        memory = self.embed(series, marks)
        for layer in self.encoder:
            memory, _ = layer(memory)
        memory = self.encoder_norm(memory)

        recent = self.lookback - self.label
        seasonal, trend = series, None
        if self.decomposition is not None:
            seasonal, past = self.decomposition(series)
            level = series.mean(dim=1, keepdim=True).expand(-1, self.horizon, -1)
            trend = torch.cat([past[:, recent:], level], dim=1)
        start = F.pad(seasonal[:, recent:], (0, 0, 0, self.horizon))
        calendar = None if marks is None or future is None else torch.cat([marks[:, recent:], future], dim=1)
        x = self.embed_decoder(start, calendar)
        for index, layer in enumerate(self.decoder):
            x, taken = layer(x, memory)
            if trend is not None:
                trend = trend + self.trends[index](taken.transpose(1, 2)).transpose(1, 2)
        forecast = self.head(self.decoder_norm(x))
        return (forecast if trend is None else forecast + trend)[:, self.label :]  # type: ignore[no-any-return]


class FEDformerLite(Autoformer):
    """Autoformer's frame with :class:`FourierMixing`, and a trend that is the mean of several moving averages.

    A light stand-in for FEDformer (arXiv 2201.12740), which weighs its averages by a gate. Arguments as for
    :class:`Autoformer`, and ``heads``.
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
        kernel: int | Sequence[int] = (7, 13, 25),
        decomposition: bool = True,
        dropout: float = 0.1,
    ) -> None:
        def mixer(time: int, steps: int) -> nn.Module:
            return FourierMixing(dim, heads, time, steps)

        super().__init__(
            lookback, horizon, variates, dim, layers, 1, ff, marks, label, kernel,
            decomposition=decomposition, dropout=dropout, mixer=mixer,
        )  # fmt: skip
