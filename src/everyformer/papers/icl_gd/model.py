"""Linear self-attention over in-context regression tasks (arXiv 2212.07677, section 2).

A task is a sequence of tokens: the context pairs (x_j, y_j), then the query (x, 0). A layer adds to every token

    sum_h  (token KQ_h) C^T C VP_h        with  KQ_h = query_h key_h^T,  VP_h = value_h out_h

where C are the context tokens. The prediction is minus the y channels of the query after the last layer: those channels
carry residuals, so a query that starts at zero ends at zero minus its prediction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def check_positive(**values: float) -> None:
    """Raise ``ValueError`` that names the first argument that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")


def initialise(weight: Tensor, fan_in: int, scale: float) -> None:
    """Draw from a normal cut off at two sigma, with variance ``scale / fan_in`` after the cut."""
    deviation = (scale / fan_in) ** 0.5 / 0.87962566
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


class LinearSelfAttention(nn.Module):
    """Attention of all tokens to the context, linear by default (arXiv 2212.07677, eq. 2).

    The weights act from the right, a head at a time: ``query``, ``key`` and ``value`` are (heads, dim, head_dim), ``out``
    is (heads, head_dim, dim). With ``bias``, tokens get a channel of ones, and the last row of the first three is the
    bias. Only the products KQ and VP enter, so a layer costs O(tokens * dim²) and never forms keys or values.

    Args:
        dim: width of a token.
        heads: attention heads.
        key_dim: width of keys and of values, all heads together, a multiple of ``heads``; ``heads * dim`` by default.
        softmax: weights by softmax with scale head_dim^-1/2, in place of the scores themselves.
        exclude_query: leave the last token out of keys and values.
        bias: biases on all four maps.
        window: let each token see only this many tokens before it (linear attention alone).
        init_scale: variance of the weights times their fan-in.

    Raises:
        ValueError: a size that is not above 0, ``key_dim`` not a multiple of ``heads``, or ``window`` with softmax.
    """

    out_bias: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        key_dim: int | None = None,
        softmax: bool = False,
        exclude_query: bool = True,
        bias: bool = False,
        window: int | None = None,
        init_scale: float = 0.002,
    ) -> None:
        super().__init__()
        key_dim = heads * dim if key_dim is None else key_dim
        check_positive(dim=dim, heads=heads, key_dim=key_dim, window=1 if window is None else window)
        if key_dim % heads:
            raise ValueError(f"key_dim must be a multiple of heads, got key_dim={key_dim} and heads={heads}")
        if window is not None and softmax:
            raise ValueError(f"window must be None with softmax: the first token sees no other, got {window}")
        self.dim, self.heads, self.head_dim = dim, heads, key_dim // heads
        self.softmax, self.exclude_query, self.bias, self.window = softmax, exclude_query, bias, window
        self.query = nn.Parameter(torch.zeros(heads, dim + bias, self.head_dim))
        self.key = nn.Parameter(torch.zeros(heads, dim + bias, self.head_dim))
        self.value = nn.Parameter(torch.zeros(heads, dim + bias, self.head_dim))
        self.out = nn.Parameter(torch.zeros(heads, self.head_dim, dim))
        self.out_bias = nn.Parameter(torch.zeros(dim)) if bias else None
        with torch.no_grad():
            for weight in (self.query, self.key, self.value):
                initialise(weight[:, :dim], dim, init_scale)
            initialise(self.out, key_dim, init_scale)

    def merged(self) -> tuple[Float[Tensor, "heads dim dim"], Float[Tensor, "heads dim dim"]]:
        """KQ and VP of every head: all that the layer's output depends on, but for biases of the output."""
        return self.query @ self.key.mT, self.value @ self.out

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The update of every token (nothing is added to the tokens here).

        Raises:
            ValueError: tokens of another width or without context.
        """
        return self.attend(tokens, tokens)[0]

    def attend(
        self,
        queries: Float[Tensor, "batch queries dim"],
        tokens: Float[Tensor, "batch tokens dim"],
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch queries dim"], Float[Tensor, "batch heads queries context"] | None]:
        """Updates of ``queries``, the last ones of ``tokens``, and the attention weights where wanted."""
        check_tokens(tokens, self.dim, 1 + self.exclude_query)
        context = tokens[:, :-1] if self.exclude_query else tokens
        if self.bias:
            queries, context = F.pad(queries, (0, 1), value=1.0), F.pad(context, (0, 1), value=1.0)
        batch, count, width = queries.shape
        kq, vp = self.merged()
        # A head is a row of its own: (batch, queries * heads, width).
        rows = (queries @ kq.transpose(0, 1).flatten(1)).reshape(batch, count * self.heads, width)
        weights, points = None, context.shape[1]
        if not (need_weights or self.softmax or self.window is not None) and min(count, points) > width:
            # Long: one state C^T C VP for all queries.
            out = rows.reshape(batch, count, -1) @ self._stack(context.mT @ self._values(context, vp))
        else:
            weights = self._weigh(rows @ context.mT, tokens.shape[1])
            if count < points and torch.is_grad_enabled():
                # Training on one query: mixtures are fewer than tokens, and cheaper to map; it costs a digit or so.
                out = (weights @ context).reshape(batch, count, self.heads * width) @ vp.flatten(0, 1)
            else:
                out = weights.reshape(batch, count, -1) @ self._stack(self._values(context, vp))
        if self.out_bias is not None:
            out = out + self.out_bias
        if weights is None or not need_weights:
            return out, None
        return out, weights.reshape(batch, count, self.heads, points).transpose(1, 2)

    @staticmethod
    def _values(context: Tensor, vp: Tensor) -> Tensor:
        """C VP, heads side by side. Mapped before they are summed, a value keeps the digits of w0 x - y."""
        return context @ vp.transpose(0, 1).flatten(1)

    def _stack(self, x: Tensor) -> Tensor:
        """Heads side by side to heads one below another, so that one product sums over them."""
        return x.unflatten(2, (self.heads, self.dim)).transpose(1, 2).flatten(1, 2)

    def _weigh(self, scores: Tensor, tokens: int) -> Tensor:
        if self.softmax:
            return (scores * self.head_dim**-0.5).softmax(dim=-1)
        if self.window is None:
            return scores
        count = scores.shape[1] // self.heads
        position = torch.arange(tokens - count, tokens, device=scores.device).repeat_interleave(self.heads)
        behind = position.unsqueeze(-1) - torch.arange(scores.shape[2], device=scores.device)
        return scores * ((behind > 0) & (behind <= self.window))


def check_tokens(tokens: Tensor, dim: int, least: int = 2) -> None:
    """Raise ``ValueError`` where tokens do not have the width a model was built for, or hold no context."""
    if tokens.ndim != 3 or tokens.shape[2] != dim:
        raise ValueError(f"tokens must have shape (batch, tokens, {dim}), got {tuple(tokens.shape)}")
    if tokens.shape[1] < least:
        raise ValueError(f"tokens must hold at least one context token and the query, got {tokens.shape[1]} in all")


def mlp(dim: int, hidden: int, bias: bool, init_scale: float) -> nn.Sequential:
    """Two linear maps with a GELU (in tanh form) between them."""
    up, down = nn.Linear(dim, hidden, bias), nn.Linear(hidden, dim, bias)
    for linear in (up, down):
        initialise(linear.weight, linear.in_features, init_scale)
        if bias:
            nn.init.zeros_(linear.bias)
    return nn.Sequential(up, nn.GELU("tanh"), down)


class TokenMLP(nn.Module):
    """Tokens into a wider space: a linear map without bias, then an MLP beside it (arXiv 2212.07677, section 4)."""

    def __init__(self, width: int, dim: int, hidden: int, init_scale: float = 0.002) -> None:
        super().__init__()
        self.emb = nn.Linear(width, dim, bias=False)
        initialise(self.emb.weight, width, init_scale)
        self.mlp = mlp(dim, hidden, True, init_scale)

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens dim"]:
        """Embedded tokens."""
        embedded = self.emb(tokens)
        return embedded + self.mlp(embedded)


class Lift(nn.Module):
    """Regression on a representation: ``features`` of the x channels in their place, y channels as they are.

    In front of a layer that descends on linear regression it makes one that descends on ``features``, that is with
    the kernel k(x, x') = features(x) . features(x') (arXiv 2212.07677, section 4).
    """

    def __init__(self, features: nn.Module, outputs: int = 1) -> None:
        super().__init__()
        check_positive(outputs=outputs)
        self.features, self.outputs = features, outputs

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens (features(x), y)."""
        x, y = tokens[..., : -self.outputs], tokens[..., -self.outputs :]
        return torch.cat([self.features(x), y], dim=-1)


def positions(tokens: int, channels: int, like: Tensor) -> Float[Tensor, "tokens channels"]:
    """Sinusoidal position codes, sine in even channels and cosine in odd ones, base 10,000 (arXiv 1706.03762)."""
    place = torch.arange(tokens, device=like.device, dtype=torch.float32).unsqueeze(1)
    rates = 10000.0 ** (-torch.arange(0, channels, 2, device=like.device, dtype=torch.float32) / channels)
    codes = torch.stack([(place * rates).sin(), (place * rates).cos()], dim=-1)
    return codes.flatten(1)[:, :channels].to(like.dtype)


class InContextTransformer(nn.Module):
    """A transformer that reads a regression task and predicts the query's y (arXiv 2212.07677).

    As in the authors' model, the MLP and the norm before it are shared by all layers even where attention is not, and
    untied layers have no norm before the first attention.

    Args:
        dim: width of a token inside the model.
        layers: number of layers; may be changed afterwards where ``tied``.
        tied: one attention used ``layers`` times; otherwise each layer has its own.
        outputs: number of y channels, the last ones of a token.
        heads, key_dim, bias, exclude_query, window: see :class:`LinearSelfAttention`.
        softmax: in all layers, in none, or in the ``"first"`` (untied) one.
        norm: layer norm before each branch.
        mlp: hidden width of an MLP after each attention, in multiples of ``dim``; 0 for none.
        dampening: factor on every update.
        clip: keep tokens within ±``clip`` after each branch.
        y_only: let attention change y channels alone.
        positions: number of channels, out of ``dim``, that hold position codes.
        embed: from the tokens given to tokens of width ``dim - positions``.
        init_scale: variance of the weights times their fan-in; 0.002 / layers by default.

    Raises:
        ValueError: sizes that do not fit together (the argument is named).
    """

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        tied: bool = True,
        outputs: int = 1,
        heads: int = 1,
        key_dim: int | None = None,
        softmax: bool | Literal["first"] = False,
        norm: bool = False,
        mlp: int = 0,
        bias: bool = False,
        dampening: float = 1.0,
        clip: float | None = None,
        y_only: bool = False,
        positions: int = 0,
        embed: nn.Module | None = None,
        exclude_query: bool = True,
        window: int | None = None,
        init_scale: float | None = None,
    ) -> None:
        super().__init__()
        check_positive(layers=layers, outputs=outputs, dampening=dampening, clip=1.0 if clip is None else clip)
        if softmax not in (True, False, "first") or (softmax == "first" and tied):
            raise ValueError(f"softmax must be True, False or, for untied layers, 'first', got {softmax!r}")
        if not 0 <= positions < dim or not outputs < dim:
            raise ValueError(f"dim must exceed positions and outputs, got {dim}, {positions} and {outputs}")
        scale = 0.002 / layers if init_scale is None else init_scale
        self.dim, self.layers, self.tied, self.outputs, self.positions = dim, layers, tied, outputs, positions
        self.dampening, self.clip, self.y_only = dampening, clip, y_only
        self.embed = embed
        self.attention = nn.ModuleList(
            LinearSelfAttention(
                dim, heads, key_dim, softmax is True or (softmax == "first" and layer == 0), exclude_query, bias,
                window, scale,
            )
            for layer in range(1 if tied else layers)
        )  # fmt: skip
        self.norms = nn.ModuleList(
            nn.LayerNorm(dim) if norm and (tied or layer) else nn.Identity() for layer in range(len(self.attention))
        )
        self.mlp = _mlp(dim, mlp * dim, bias, scale) if mlp else None
        self.mlp_norm = nn.LayerNorm(dim) if mlp and norm else nn.Identity()

    def layer(self, index: int = 0) -> LinearSelfAttention:
        """The attention of a layer; tied models have one."""
        attention = self.attention[0 if self.tied else index]
        assert isinstance(attention, LinearSelfAttention)
        return attention

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch outputs"]:
        """The prediction for the last token; its last layer is computed for that token alone.

        Raises:
            ValueError: tokens of another width, or without context.
        """
        h = self.embedded(tokens)
        for layer in range(self.layers - 1):
            h, _ = self._layer(h, h, layer)
        last, _ = self._layer(h[:, -1:], h, self.layers - 1)
        return -last[:, -1, -self.outputs :]

    def trace(
        self, tokens: Float[Tensor, "batch tokens width"]
    ) -> Iterator[tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch heads tokens context"]]]:
        """All tokens and the attention weights after each layer."""
        h = self.embedded(tokens)
        for layer in range(self.layers):
            h, weights = self._layer(h, h, layer, need_weights=True)
            assert weights is not None
            yield h, weights

    def embedded(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens as the first layer sees them."""
        if self.embed is not None:
            tokens = self.embed(tokens)
        check_tokens(tokens, self.dim - self.positions)
        if not self.positions:
            return tokens
        codes = positions(tokens.shape[1], self.positions, tokens)
        return torch.cat([tokens, codes.expand(len(tokens), -1, -1)], dim=-1)

    def _layer(self, h: Tensor, tokens: Tensor, layer: int, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        norm = self.norms[0 if self.tied else layer]
        update, weights = self.layer(layer).attend(norm(h), norm(tokens), need_weights)
        if self.y_only:
            update = F.pad(update[..., -self.outputs :], (self.dim - self.outputs, 0))
        h = self._clipped(h + self.dampening * update)
        if self.mlp is not None:
            h = self._clipped(h + self.dampening * self.mlp(self.mlp_norm(h)))
        return h, weights

    def _clipped(self, h: Tensor) -> Tensor:
        return h if self.clip is None else h.clamp(-self.clip, self.clip)


_mlp = mlp  # the constructor has an argument of that name
