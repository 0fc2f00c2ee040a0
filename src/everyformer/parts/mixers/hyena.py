"""Hyena (arXiv 2302.10866): a convolution as long as the text, between two gates; its filter is a small network."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.parts.growing import grown
from everyformer.parts.mixers.base import Cache, Mixer
from everyformer.parts.mixers.ssd import ShortConv

BANDS = 8  # wavelengths in tokens, that a filter is told of a distance, from 2 pi to 2 pi 10^4


class Hyena(Mixer):
    """Hyena of order two (section 3.1): ``y = a * (h conv (b * v))`` with a, b and v short convolutions of the tokens.

    The filter is a function of the distance in tokens, so the same weights take any number. A cache keeps the products
    b * v: a token costs as much as there are tokens before it.

    Args:
        hidden: width of the filter's network.
    """

    must_be_causal = True
    takes_cache = True

    def __init__(
        self, dim: int, *, heads: int = 4, causal: bool = True, length: int | None = None, hidden: int = 32
    ) -> None:
        super().__init__(dim, heads=heads, causal=causal, length=length)
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        self.inside = nn.Linear(dim, 3 * dim)
        self.conv = ShortConv(3 * dim, 3)
        self.first, self.second = nn.Linear(2 * BANDS + 1, hidden), nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, dim, bias=False)
        self.skip = nn.Parameter(torch.ones(dim))
        self.out = nn.Linear(dim, dim)

    def mix(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        inputs = self.inside(x)
        if mask is not None:
            inputs = inputs * mask[..., None]
        outer, inner, value = self.conv(inputs, cache).chunk(3, dim=-1)
        value = inner * value
        if mask is not None:  # the short convolution's bias stands in padding too
            value = value * mask[..., None]
        mixed = self._convolved(value, cache)
        return self.out(outer * torch.addcmul(mixed, value, self.skip))  # type: ignore[no-any-return]

    def filter(self, tokens: int) -> Float[Tensor, "tokens dim"]:
        """The response at distances 0, 1, ... (section 3.3)."""
        weight = self.last.weight
        distance = torch.arange(tokens, device=weight.device).float()[:, None]
        angles = distance * torch.logspace(0, -4, BANDS, device=weight.device)
        seen = torch.cat([angles.sin(), angles.cos(), distance.log1p() / math.log(4096)], dim=-1).to(weight.dtype)
        response = self.last(torch.sin(self.second(torch.sin(self.first(seen)))))
        # The window (equation 8): channels reach from 4 to 4096 tokens far.
        reach = torch.logspace(2, 12, self.dim, base=2, device=weight.device)
        window = torch.exp(-distance / reach) * reach.rsqrt()
        return response * window.to(weight.dtype)  # type: ignore[no-any-return]

    def _convolved(self, value: Tensor, cache: Cache | None) -> Tensor:
        tokens = value.shape[1]
        if cache is None:
            return long_convolution(value, self.filter(tokens))
        start = cache.get("tokens", 0)
        cache["tokens"] = end = start + tokens
        cache["values"] = room = grown(cache.get("values"), start, value, dim=1)
        if start == 0 or cache["filter"].shape[0] < end:
            # Last distance first: the dot product with the values so far is then one with its end.
            cache["filter"] = self.filter(room.shape[1]).flip(0).to(value.dtype)
        if tokens == 1:
            response = cache["filter"][cache["filter"].shape[0] - end :]
            return torch.einsum("btd,td->bd", cache["values"][:, :end], response).unsqueeze(1)
        response = cache["filter"].flip(0)[:end]
        return long_convolution(cache["values"][:, :end], response)[:, start:]


def long_convolution(
    x: Float[Tensor, "batch tokens dim"], response: Float[Tensor, "tokens dim"]
) -> Float[Tensor, "batch tokens dim"]:
    """Each channel's causal convolution with its response, by FFT: n log n time."""
    tokens, kind = x.shape[1], x.dtype
    precise = torch.promote_types(kind, torch.float32)  # there is no FFT of bfloat16
    # Along the last axis, where an FFT reads memory in order.
    spectrum = torch.fft.rfft(x.to(precise).transpose(1, 2).contiguous(), n=2 * tokens)
    spectrum = spectrum * torch.fft.rfft(response.to(precise).T.contiguous(), n=2 * tokens)
    return torch.fft.irfft(spectrum, n=2 * tokens)[..., :tokens].transpose(1, 2).to(kind)
