"""Linear attention as a virtual node whose products and quotients are ReLU networks, with a certified error.

The exact construction multiplies and divides; the paper's networks only have ReLU layers, which do both to any accuracy on
a compact domain (arXiv 2301.11956, section 4). Here that domain is |x_i| <= radius, and the bounds are interval arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.mpnn_gt.attention import EluFeatures, LinearAttention, RandomFeatures
from everyformer.papers.mpnn_gt.constructions import LinearAttentionAsVN
from everyformer.papers.mpnn_gt.segments import Batch, Segments, check_nodes

MOST_KNOTS = 20_000


def interpolating_network(function: Callable[[Tensor], Tensor], knots: Float[Tensor, "k"]) -> nn.Sequential:
    """A ReLU network with one hidden layer that joins the values of ``function`` at the knots by straight lines."""
    values = function(knots)
    slopes = values.diff() / knots.diff()
    hidden, out = nn.Linear(1, len(slopes), dtype=knots.dtype), nn.Linear(len(slopes), 1, dtype=knots.dtype)
    with torch.no_grad():
        hidden.weight.fill_(1.0)
        hidden.bias.copy_(-knots[:-1])
        out.weight.copy_(torch.cat([slopes[:1], slopes.diff()])[None])
        out.bias.copy_(values[:1])
    return nn.Sequential(hidden, nn.ReLU(), out)


class Product(nn.Module):
    """a * b as (s(a' + b') - s(a' - b')) / 4 with s a ReLU network for the square; off by at most ``error``.

    ``a`` and ``b`` are scaled to a' and b' of the same size first. Where |a| <= most_a and |b| <= most_b, the arguments of
    the square lie within 2 sqrt(most_a most_b), and knots h apart make the square too large by 0 to h²/4.
    """

    def __init__(self, most_a: float, most_b: float, error: float) -> None:
        super().__init__()
        self.scale = math.sqrt(most_b / most_a)
        reach = 2 * math.sqrt(most_a * most_b)
        count = knots_or_refuse(2 * reach / math.sqrt(16 * error))
        self.square = interpolating_network(torch.square, torch.linspace(-reach, reach, count, dtype=torch.float64))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The product, number by number."""
        a, b = a * self.scale, b / self.scale
        return (self.square((a + b)[..., None]) - self.square((a - b)[..., None]))[..., 0] / 4  # type: ignore[no-any-return]


def reciprocal(low: float, high: float, error: float) -> nn.Sequential:
    """A ReLU network for 1 / x on [low, high]: between knots a and b it is too large by at most (a^-1/2 - b^-1/2)²."""
    ratio = (1 - min(math.sqrt(error * low), 0.2)) ** -2
    count = knots_or_refuse(math.log(high / low) / math.log(ratio) + 1)
    ends = math.log(low), math.log(high)
    return interpolating_network(torch.reciprocal, torch.linspace(*ends, count, dtype=torch.float64).exp())


def knots_or_refuse(wanted: float) -> int:
    """``wanted`` rounded up, at least 2; raises ``ValueError`` with the number when it is above the most allowed."""
    count = max(2, math.ceil(wanted) + 1)
    if count > MOST_KNOTS:
        raise ValueError(f"epsilon asks for {count:,} hidden units in one network, at most {MOST_KNOTS:,} are made")
    return count


class LinearAttentionAsReluVN(nn.Module):
    """See :func:`linear_attention_as_relu_vn`; runs in float64."""

    def __init__(self, exact: LinearAttentionAsVN, epsilon: float, radius: float) -> None:
        super().__init__()
        exact = exact.double()
        self.exact = exact
        self.epsilon, self.radius = epsilon, radius
        low_q, most_q, m = _feature_bounds(exact.features, _reach(exact.query, radius), exact.heads)
        low_k, most_k, _ = _feature_bounds(exact.features, _reach(exact.key, radius), exact.heads)
        most_v = float(_reach(exact.value, radius).max())
        assert isinstance(exact.out, nn.Linear)
        share = epsilon / float(exact.out.weight.detach().abs().sum(1).max()) / 4
        low = (
            m * low_q * low_k
        )  # the denominator is at least this; as sums are means here, whatever the number of nodes
        high = m * most_q * most_k
        top = most_v * high  # of a numerator
        # Errors add up to 4 shares: of the last product, of the reciprocal, of the second round's products, of the first's.
        second = min(share / m / (2 * top / low**2 + 2 / low), low / (2 * m))
        first = min(share * low / (2 * m * most_q), most_k * most_v)
        self.message_product = Product(most_k, most_v, first)
        self.read_product = Product(most_q, max(2 * most_k * most_v, most_k), second)
        self.invert = reciprocal(low / 2, 1.5 * high, share / top)
        self.last_product = Product(top + m * (second + most_q * first), 2 / low, share)
        self.denominator_at_least = low

    @property
    def hidden_units(self) -> int:
        """Of the widest of the networks."""
        return max(m.out_features for m in self.modules() if isinstance(m, nn.Linear) and m.in_features == 1)

    def forward(
        self,
        x: Float[Tensor, "nodes dim"],
        edge_index: Tensor | None = None,
        edge_attr: Tensor | None = None,
        batch: Batch = None,
        graphs: int | None = None,
    ) -> Float[Tensor, "nodes dim"]:
        """New nodes.

        Raises:
            ValueError: an x outside the domain.
        """
        exact = self.exact
        check_nodes(x, exact.query.in_features)
        if not torch.compiler.is_compiling() and len(x) and float(x.abs().max()) > self.radius:
            raise ValueError(f"x must lie within [-{self.radius}, {self.radius}], got {float(x.abs().max()):.3g}")
        segments = Segments.of(x, batch, graphs)
        x = x.double()
        query, key, value = (part(x).unflatten(-1, (exact.heads, -1)) for part in (exact.query, exact.key, exact.value))
        query, key = exact.features(query), exact.features(key)
        product = self.message_product(*torch.broadcast_tensors(key.unsqueeze(-1), value.unsqueeze(-2)))
        message = torch.cat([product, key.unsqueeze(-1)], dim=-1)
        received = segments.spread(segments.reduce(message.flatten(1), "mean")).view(message.shape)
        read = self.read_product(*torch.broadcast_tensors(query.unsqueeze(-1), received)).sum(-2)
        value, weight = read[..., :-1], read[..., -1:]
        quotient = self.last_product(*torch.broadcast_tensors(value, self.invert(weight[..., None])[..., 0]))
        return exact.out(quotient.flatten(1))  # type: ignore[no-any-return]


def linear_attention_as_relu_vn(
    module: LinearAttention, epsilon: float, radius: float = 1.0
) -> LinearAttentionAsReluVN:
    """Linear attention by a virtual node and ReLU networks, off by at most ``epsilon`` in every number.

    Args:
        module: with ``EluFeatures`` or ``RandomFeatures``.
        epsilon: the error allowed where all |x_i| <= ``radius``, for any number of nodes; the hidden units grow as
            1 / sqrt(epsilon).

    Raises:
        TypeError: another module or feature map: the bounds need to know it.
        ValueError: ``epsilon`` or ``radius`` not above 0, or more hidden units needed than are made.
    """
    for name, value in (("epsilon", epsilon), ("radius", radius)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be above 0, got {value}")
    if not isinstance(module, LinearAttention):
        raise TypeError(f"module must be a LinearAttention, got {type(module).__name__}")
    return LinearAttentionAsReluVN(LinearAttentionAsVN.from_attention(module), epsilon, radius)


def _reach(linear: nn.Linear, radius: float) -> Tensor:
    """The largest |output| of each unit where all |inputs| <= radius."""
    return (linear.weight.abs().sum(1) * radius + linear.bias.abs()).detach()


def _feature_bounds(features: nn.Module, reach: Tensor, heads: int) -> tuple[float, float, int]:
    """The least and the largest feature where |inputs| <= reach, and the number of features of a head."""
    per_head = reach.view(heads, -1)
    if isinstance(features, EluFeatures):
        most = float(reach.max())
        return math.exp(-most), 1 + most, per_head.shape[1]
    if isinstance(features, RandomFeatures):
        scaled = per_head * per_head.shape[1] ** -0.25
        least = -(scaled @ features.rows.T.abs()).max() - scaled.square().sum(1).max() / 2
        most = float(features.rows.square().sum(1).max() / 2)
        count = len(features.rows)
        return math.exp(float(least)) / math.sqrt(count), math.exp(most) / math.sqrt(count), count
    raise TypeError(f"features must be EluFeatures or RandomFeatures, got {type(features).__name__}")
