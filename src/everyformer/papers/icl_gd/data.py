"""Seeded in-context regression tasks as the authors draw them (arXiv 2212.07677, section 3 and appendix).

``tokens`` hold the context pairs (x_j, y_j) and last the query with zeros for its y, ``target`` the query's y.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.papers.icl_gd.model import check_positive

LAWS = ("uniform", "exponential", "normal", "laplace", "mixed")


class Tasks(NamedTuple):
    """A batch of tasks: tokens (batch, context + 1, dim_x + dim_y) and targets (batch, dim_y)."""

    tokens: Tensor
    target: Tensor


def regression_tokens(
    x: Float[Tensor, "batch context dim_x"],
    y: Float[Tensor, "batch context dim_y"],
    query: Float[Tensor, "batch dim_x"],
    w0: Float[Tensor, "dim_y dim_x"] | None = None,
) -> Float[Tensor, "batch tokens dim"]:
    """Tokens of a task; the query's y channels start at minus its prediction under ``w0``, zero without one.

    Raises:
        ValueError: shapes that do not match.
    """
    if x.ndim != 3 or y.shape[:-1] != x.shape[:-1] or query.shape != (x.shape[0], x.shape[2]):
        shapes = f"{tuple(x.shape)}, {tuple(y.shape)} and {tuple(query.shape)}"
        wanted = "(batch, context, dim_x), (batch, context, dim_y) and (batch, dim_x)"
        raise ValueError(f"x, y and query must be {wanted}, got {shapes}")
    start = query.new_zeros(len(query), y.shape[2]) if w0 is None else -query @ w0.mT
    last = torch.cat([query, start], dim=-1)
    return torch.cat([torch.cat([x, y], dim=-1), last.unsqueeze(1)], dim=1)


def regression_tasks(
    batch: int,
    dim_x: int = 10,
    dim_y: int = 1,
    context: int = 10,
    input_range: float = 1.0,
    weight_scale: float = 1.0,
    law: str = "uniform",
    corrupted: int = 0,
    generator: torch.Generator | None = None,
) -> Tasks:
    """Linear regression without noise, y = W x with weights of a normal law times ``weight_scale``.

    Args:
        input_range: r. The law ``uniform`` draws x from (-r/2, r/2): with r = 1, the setting of all the authors'
            figures, every coordinate is within half of zero.
        law: ``uniform``; out of distribution ``exponential``, ``normal`` or ``laplace``, where x is divided by the
            Frobenius norm of the context's and multiplied by r; or ``mixed``, one of those three per task.
        corrupted: number of context points whose y is replaced by normal noise.

    Raises:
        ValueError: sizes not above 0, an unknown law, or more corrupted points than there are.
    """
    check_positive(batch=batch, dim_x=dim_x, dim_y=dim_y, context=context, input_range=input_range)
    if law not in LAWS:
        raise ValueError(f"law must be one of {', '.join(LAWS)}, got {law!r}")
    weight = torch.randn(batch, dim_y, dim_x, generator=generator) * weight_scale
    if law == "uniform":
        x = (torch.rand(batch, context + 1, dim_x, generator=generator) - 0.5) * input_range
    else:
        x = _other_law(law, (batch, context + 1, dim_x), generator)
        x = x * (input_range / torch.linalg.matrix_norm(x[:, :-1], keepdim=True))
    y = x @ weight.mT
    return _task(x, y, corrupted, generator)


def _other_law(law: str, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    size = torch.empty(shape).exponential_(generator=generator)
    sign = torch.randint(2, shape, generator=generator) * 2.0 - 1.0
    drawn = torch.stack(
        [size, torch.randn(shape, generator=generator), size * sign]
    )  # a Laplace is a signed exponential
    if law != "mixed":
        return drawn[LAWS.index(law) - 1]
    return drawn[torch.randint(3, shape[:1], generator=generator), torch.arange(shape[0])]


def sine_tasks(
    batch: int,
    context: int = 10,
    input_range: float = 10.0,
    corrupted: int = 0,
    generator: torch.Generator | None = None,
) -> Tasks:
    """Sine waves: y = a sin(x + p), x in ±input_range/2, a in (0.1, 0.5), p in (0, pi), all uniform.

    Raises:
        ValueError: sizes not above 0, or more corrupted points than there are.
    """
    check_positive(batch=batch, context=context, input_range=input_range)
    amplitude = 0.1 + 0.4 * torch.rand(batch, 1, 1, generator=generator)
    phase = math.pi * torch.rand(batch, 1, 1, generator=generator)
    x = (torch.rand(batch, context + 1, 1, generator=generator) - 0.5) * input_range
    return _task(x, amplitude * (x + phase).sin(), corrupted, generator)


def _task(x: Tensor, y: Tensor, corrupted: int, generator: torch.Generator | None) -> Tasks:
    batch, context = x.shape[0], x.shape[1] - 1
    if not 0 <= corrupted <= context:
        raise ValueError(f"corrupted must be between 0 and context={context}, got {corrupted}")
    shown = y[:, :-1]
    if corrupted:
        rank = torch.rand(batch, context, 1, generator=generator).argsort(dim=1).argsort(dim=1)
        noise = torch.randn(shown.shape, generator=generator)
        shown = torch.where(rank < corrupted, noise, shown)
    return Tasks(regression_tokens(x[:, :-1], shown, x[:, -1]), y[:, -1])


def token_sequence(tokens: Float[Tensor, "batch pairs dim"], outputs: int = 1) -> Float[Tensor, "batch sequence dim_x"]:
    """x and y as tokens of their own: x_1, (0, .., y_1), x_2, .., x_query; context + 1 tokens become 2 context + 1.

    Raises:
        ValueError: tokens that are not (batch, tokens, dim), or more outputs than inputs.
    """
    if tokens.ndim != 3 or not 0 < outputs <= tokens.shape[2] - outputs:
        given = tuple(tokens.shape)
        raise ValueError(f"tokens must be (batch, tokens, dim) with dim at least twice outputs={outputs}, got {given}")
    x, y = tokens[..., :-outputs], tokens[..., -outputs:]
    wide = torch.cat([torch.zeros_like(x[..., outputs:]), y], dim=-1)
    return torch.stack([x, wide], dim=2).flatten(1, 2)[:, :-1]
