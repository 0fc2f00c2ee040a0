"""A one-layer transformer whose weights are written down: attention gathers the sequence, one ReLU network does the rest.

arXiv 2507.10581 states that one layer of attention and one feed-forward network approximate any continuous map between
sequences on a compact box. :func:`construct` builds that layer for a map and a precision.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.uat.ridge import Ridge

Gather = Literal["absolute", "relative", "mean"]


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A bound on the error over the whole box, and where it comes from.

    ``proved``: ``truncation`` and ``ridge`` bound the cosine expansion and its piecewise linear pieces for every map
    with this Lipschitz constant. ``grid``: ``truncation`` is the largest error at the centres of a covering by cells and
    ``ridge`` what the slopes of map and network can add inside a cell. ``sampled``: ``truncation`` is the largest error
    that was found; evidence, not a bound. ``rounding`` is measured. ``lipschitz`` says whether the constant was given.
    Where tokens share one network, that the map is symmetric was seen on samples, as an estimated constant is.
    """

    truncation: float
    ridge: float
    rounding: float
    kind: Literal["proved", "grid", "sampled"]
    lipschitz: Literal["given", "estimated"]
    constant: float

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return self.truncation + self.ridge + self.rounding


class UniversalTransformer(nn.Module):
    """One layer of softmax attention and one position-wise ReLU network with residual connections, without norms.

    The stream of a token holds its input, its one-hot position, ``slots`` for what attention gathers, and the output.
    With ``gather="absolute"`` every token receives the sequence in order, with ``"relative"`` starting at itself, and
    with ``"mean"``, which needs no positions, the mean of all tokens.
    """

    certificate: Certificate
    asked_width: float
    low: Tensor
    high: Tensor

    def __init__(
        self,
        tokens: int,
        dim: int,
        out_dim: int,
        width: int,
        gather: Gather = "absolute",
        domain: tuple[Tensor, Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.tokens, self.dim, self.out_dim, self.width, self.gather = tokens, dim, out_dim, width, gather
        heads, marks = (1, 0) if gather == "mean" else (tokens, tokens)
        self.slots = slice(dim + marks, dim + marks + heads * dim)
        stream = max(self.slots.stop + out_dim, heads * max(dim, marks))
        stream = heads * math.ceil(stream / heads)
        self.position = nn.Parameter(torch.zeros(tokens, stream, dtype=dtype))
        self.attention = nn.MultiheadAttention(stream, heads, batch_first=True, dtype=dtype)
        self.feed_forward = nn.Sequential(
            nn.Linear(stream, width, dtype=dtype), nn.ReLU(), nn.Linear(width, stream, dtype=dtype)
        )
        low, high = domain or (torch.zeros(tokens, dim), torch.ones(tokens, dim))
        self.register_buffer("low", low.to(dtype))
        self.register_buffer("high", high.to(dtype))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens out_dim"]:
        """Raises ``ValueError`` for another number of tokens or channels; without positions any number of tokens goes."""
        if x.dim() != 3 or x.shape[2] != self.dim or (self.gather != "mean" and x.shape[1] != self.tokens):
            raise ValueError(f"x must be (batch, {self.tokens}, {self.dim}), got {tuple(x.shape)}")
        stream = nn.functional.pad(x, (0, self.position.shape[1] - self.dim))
        if self.gather != "mean":
            stream = stream + self.position
        stream = stream + self.attention(stream, stream, stream, need_weights=False)[0]
        return (stream + self.feed_forward(stream))[..., -self.out_dim :]  # type: ignore[no-any-return]

    def gathered(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens slots"]:
        """What attention has put into every token's slots."""
        stream = nn.functional.pad(x, (0, self.position.shape[1] - self.dim)) + self.position * (self.gather != "mean")
        return (stream + self.attention(stream, stream, stream, need_weights=False)[0])[..., self.slots]  # type: ignore[no-any-return]

    @torch.no_grad()
    def write_attention(self, sharpness: float = 8.0) -> None:
        """Set attention so that the slots receive the sequence exactly, however sharp the softmax.

        Head j looks for one position; the logits do not depend on the content, so it returns (a - b) x_j + b sum x_k
        with a known a and b. The output projection inverts that mix.
        """
        for parameter in self.attention.parameters():
            parameter.zero_()
        self.position.zero_()
        heads, stream = self.attention.num_heads, self.attention.embed_dim
        head_dim = stream // heads
        query, key, value = self.attention.in_proj_weight.view(3, heads, head_dim, stream)
        channel = torch.arange(self.dim)
        value[:, channel, channel] = 1.0
        unmix = torch.ones(1, 1, dtype=torch.float64)
        if self.gather != "mean":
            place = torch.arange(self.tokens)
            self.position[place, self.dim + place] = 1.0
            key[:, place, self.dim + place] = 1.0
            for head in range(heads):
                wanted = (place + head) % self.tokens if self.gather == "relative" else torch.full_like(place, head)
                query[head, wanted, self.dim + place] = sharpness * math.sqrt(head_dim)
            unmix = torch.full((heads, heads), -sharpness, dtype=torch.float64).fill_diagonal_(0).softmax(-1).inverse()
        out = self.attention.out_proj.weight[self.slots].view(heads, self.dim, heads, head_dim)
        for c in range(self.dim):
            out[:, c, :, c] = unmix.to(out.dtype)

    @torch.no_grad()
    def write_feed_forward(self, nets: list[Ridge]) -> None:
        """Set the network: one ridge function for all tokens, or one for each, gated by the position.

        A gated neuron carries -B where the position is another one, with B above anything it can reach on the box.
        """
        first, last = self.feed_forward[0], self.feed_forward[2]
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        for parameter in self.feed_forward.parameters():
            parameter.zero_()
        low, side = self.low.double().flatten(), (self.high - self.low).double().flatten()
        inputs = list(range(self.slots.start, self.slots.stop))
        if self.gather == "mean":
            inputs, low, side = list(range(2 * self.dim)), low[: self.dim].repeat(2), side[: self.dim].repeat(2)
        start = 0
        for index, net in enumerate(nets):
            rows = slice(start, start + net.width)
            start += net.width
            size = len(side)
            weight = torch.cat(
                [net.weight, torch.eye(size, dtype=torch.float64), torch.zeros(1, size, dtype=torch.float64)]
            )
            bias = torch.cat([-net.offset, torch.zeros(size, dtype=torch.float64), torch.ones(1, dtype=torch.float64)])
            gate = float((weight.clamp(min=0).sum(-1) + bias).max()) + 1.0 if len(nets) > 1 else 0.0
            weight = weight / side
            first.weight[rows, inputs] = weight.to(first.weight.dtype)
            first.bias[rows] = (bias - weight @ low - gate).to(first.bias.dtype)
            if gate:
                first.weight[rows, self.dim + index] = gate
            out = torch.cat([net.out, net.linear, net.constant[None]])
            last.weight[-self.out_dim :, rows] = out.T.to(last.weight.dtype)
