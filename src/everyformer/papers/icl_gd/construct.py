"""Weights that make attention a step of gradient descent, and the descent itself (arXiv 2212.07677, section 3).

The loss is L(W) = 1/(2N) sum_j |W x_j - y_j|^2 over the N context points. All that is built is an ordinary
:class:`~.model.InContextTransformer`: look into it, perturb it, train on from it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.icl_gd.model import InContextTransformer, check_positive, check_tokens


def gd_weights(
    dim_x: int,
    dim_y: int,
    context: int,
    rate: float,
    w0: Float[Tensor, "dim_y dim_x"] | None = None,
    steps: int = 1,
    online: bool = False,
    embed: nn.Module | None = None,
    dtype: torch.dtype | None = None,
) -> InContextTransformer:
    """A transformer that predicts by ``steps`` steps of gradient descent from ``w0`` (proposition 1).

    KQ picks the x channels, VP = [[0, rate/N w0^T], [0, -rate/N I]]: every y channel turns into y minus what the steps
    add to the prediction. With ``w0``, the query must start at minus its prediction (see
    :func:`~.data.regression_tokens`).

    Args:
        context: N, the number of points that the gradient is a mean of.
        rate: step size.
        online: descend for each token on the ``context`` tokens before it, from ``w0``, in place of all the context
            (one step): y channels become the errors of predicting each point from its past.
        embed: a representation in front, such as :class:`~.model.Lift`; ``dim_x`` is then its number of features.

    Raises:
        ValueError: a size or rate not above 0, ``w0`` of another shape, or ``online`` with several steps.
    """
    check_positive(dim_x=dim_x, dim_y=dim_y, context=context, rate=rate, steps=steps)
    if w0 is not None and tuple(w0.shape) != (dim_y, dim_x):
        raise ValueError(f"w0 must have shape ({dim_y}, {dim_x}), got {tuple(w0.shape)}")
    if online and steps != 1:
        raise ValueError(f"steps must be 1 with online, got {steps}")
    window = context if online else None
    model = InContextTransformer(dim_x + dim_y, steps, outputs=dim_y, embed=embed, window=window).to(dtype)
    with torch.no_grad():
        _select_x(model, dim_x)
        value, out = model.layer().value[0], model.layer().out[0]
        value[dim_x:, dim_x:].fill_diagonal_(-1)
        if w0 is not None:
            value[:dim_x, dim_x:] = w0.mT
        out[dim_x:, dim_x:].fill_diagonal_(rate / context)
    return model


def gdpp_weights(
    dim_x: int,
    dim_y: int,
    context: int,
    rate: float,
    gamma: float,
    steps: int = 1,
    embed: nn.Module | None = None,
    dtype: torch.dtype | None = None,
) -> InContextTransformer:
    """GD++: each layer also bends the inputs, x <- (I - gamma sum_i x_i x_i^T) x (section 3, two and more layers).

    Other arguments as in :func:`gd_weights`. There is no ``w0``: once x moves, context and query would need different
    weights. To start from one, give residuals y - w0 x as y, and add w0 x to the prediction.

    Raises:
        ValueError: a size or rate not above 0.
    """
    model = gd_weights(dim_x, dim_y, context, rate, steps=steps, embed=embed, dtype=dtype)
    with torch.no_grad():
        model.layer().value[0, :dim_x, :dim_x].fill_diagonal_(1)
        model.layer().out[0, :dim_x, :dim_x].fill_diagonal_(-gamma)
    return model


def _select_x(model: InContextTransformer, dim_x: int) -> None:
    for name, weight in model.layer().named_parameters():
        weight.zero_()
        if name in ("query", "key"):
            weight[0, :dim_x, :dim_x].fill_diagonal_(1)


class LearnedGDPlusPlus(nn.Module):
    """GD++ with learned step and curvature: the x and y entries of value and projection are four free scalars."""

    def __init__(self, context: int, rate: float, gamma: float, steps: int = 2, outputs: int = 1) -> None:
        super().__init__()
        check_positive(context=context, rate=rate, steps=steps, outputs=outputs)
        self.context, self.steps, self.outputs = context, steps, outputs
        self.value = nn.Parameter(torch.tensor([1.0, -1.0]))
        self.out = nn.Parameter(torch.tensor([-gamma, rate / context]))

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch outputs"]:
        """The prediction for the last token."""
        move_x, move_y = (self.value * self.out).unbind()
        x, y = tokens[..., : -self.outputs], tokens[..., -self.outputs :]
        for _ in range(self.steps):
            scores = x @ x[:, :-1].mT
            x, y = x + move_x * (scores @ x[:, :-1]), y + move_y * (scores @ y[:, :-1])
        return -y[:, -1]

    def module(self, dim_x: int) -> InContextTransformer:
        """The same as a transformer with these weights."""
        move_x, move_y = (self.value * self.out).detach().unbind()
        rate = -float(move_y) * self.context
        return gdpp_weights(dim_x, self.outputs, self.context, rate, -float(move_x), self.steps)


def gradient_descent(
    tokens: Float[Tensor, "batch tokens dim"],
    rate: float,
    steps: int = 1,
    outputs: int = 1,
    w0: Float[Tensor, "dim_y dim_x"] | None = None,
) -> Float[Tensor, "steps batch outputs"]:
    """Predictions after each step of plain gradient descent on the weights: what the layers are held against.

    Works in the precision of ``tokens``; the query's own y channels are not looked at.
    """
    x, y, query = tokens[:, :-1, :-outputs], tokens[:, :-1, -outputs:], tokens[:, -1:, :-outputs]
    weight = x.new_zeros(len(x), outputs, x.shape[2])
    if w0 is not None:
        weight = weight + w0.to(x)
    found = []
    for _ in range(steps):
        error = x @ weight.mT - y
        weight = weight - rate / x.shape[1] * (error.mT @ x)
        found.append((query @ weight.mT).squeeze(1))
    return torch.stack(found)


def kernel_descent(
    kernel: Float[Tensor, "batch context context"],
    query: Float[Tensor, "batch context"],
    y: Float[Tensor, "batch context outputs"],
    rate: float,
    steps: int = 1,
) -> Float[Tensor, "batch outputs"]:
    """Prediction by gradient descent in the space of a kernel, k(x_i, x_j) and k(x_query, x_j) given (section 4)."""
    residual, found = y, torch.zeros_like(y[:, 0])
    for _ in range(steps):
        found = found + rate / y.shape[1] * (query.unsqueeze(1) @ residual).squeeze(1)
        residual = residual - rate / y.shape[1] * (kernel @ residual)
    return found


class RateScan(NamedTuple):
    """The best step size and its loss, and all that were tried."""

    rate: float
    loss: float
    rates: Tensor
    losses: Tensor


def best_rate(
    tokens: Float[Tensor, "batch tokens dim"],
    target: Float[Tensor, "batch outputs"],
    steps: int = 1,
    rates: Float[Tensor, "rates"] | None = None,
    curvature: float = 0.0,
) -> RateScan:
    """The step size of lowest loss (half the mean squared error); all sizes are tried at once.

    In the eigenbasis of the context's kernel X X^T both descents are elementwise: a step multiplies a residual by
    1 - rate/N l, and the curvature correction multiplies the eigenvalue l by (1 - gamma l)^2.

    Args:
        rates: 0.001, 0.101, .. below 25 by default, as in the authors' scan.
        curvature: gamma / rate of GD++ (the authors scan with 1/N²); 0 is plain gradient descent.

    Raises:
        ValueError: shapes that do not match, tasks that are not finite, or rates not above 0.
    """
    check_tokens(tokens, tokens.shape[-1])
    outputs, context = target.shape[-1], tokens.shape[1] - 1
    if target.shape != (len(tokens), outputs) or not 0 < outputs < tokens.shape[2]:
        raise ValueError(f"target must be (batch, outputs) with fewer outputs than channels, got {tuple(target.shape)}")
    if not (tokens.isfinite().all() and target.isfinite().all()):
        raise ValueError("tokens and target must be finite, got NaN or infinity")
    tried = torch.arange(0.001, 25, 0.1) if rates is None else rates
    if tried.ndim != 1 or not (len(tried) and (tried > 0).all()):
        raise ValueError(f"rates must be a vector of values above 0, got {tried}")

    x, y = tokens[..., :-outputs].double(), tokens[:, :-1, -outputs:].double()
    eigenvalues, basis = torch.linalg.eigh(x[:, :-1] @ x[:, :-1].mT)
    residual = basis.mT @ y
    query = (x[:, -1:] @ x[:, :-1].mT @ basis).mT
    losses = [
        0.5 * (_descend(eigenvalues.unsqueeze(-1), query, residual, some, curvature * some, steps, context)
               - target.double()).square().mean(dim=(1, 2))
        for some in tried.double().to(tokens.device).reshape(-1, 1, 1, 1).split(8)
    ]  # fmt: skip
    found = torch.cat(losses)
    best = int(found.argmin())
    return RateScan(float(tried[best]), float(found[best]), tried, found)


def _descend(
    eigenvalues: Tensor, query: Tensor, residual: Tensor, rate: Tensor, gamma: Tensor, steps: int, context: int
) -> Float[Tensor, "rates batch outputs"]:
    step, found = rate / context, torch.zeros((), dtype=query.dtype)
    for _ in range(steps):
        found = found + (step * query * residual).sum(dim=2)
        residual = residual - step * eigenvalues * residual
        bend = (1 - gamma * eigenvalues).square()
        eigenvalues, query = eigenvalues * bend, query * bend
    return found


class OptimalRate(NamedTuple):
    """The best step size for one step, and its expected loss."""

    rate: float
    loss: float


def optimal_rate(d: int, n: int, var: float, m4: float) -> OptimalRate:
    """Closed form of :func:`best_rate` for one step, independent coordinates of mean zero, and weights of variance 1.

    Args:
        d: number of coordinates.
        n: number of context points.
        var, m4: second and fourth moment of a coordinate; r²/12 and r⁴/80 for the law (-r/2, r/2).

    Raises:
        ValueError: values not above 0, or a fourth moment below the square of the second.
    """
    check_positive(d=d, n=n, var=var, m4=m4)
    if m4 < var**2:
        raise ValueError(f"m4 must be at least var², got m4={m4} and var²={var**2}")
    rate = var / ((m4 + (d - 1) * var**2) / n + var**2 * (n - 1) / n)
    return OptimalRate(rate, 0.5 * d * var * (1 - rate * var))
