"""Sequences x_{t+1} = W x_t with a random unitary diagonal W, and the laws of their first value (arXiv 2405.16845).

A law gives real first values of shape (batch, dim): a name in ``LAWS`` or a function ``law(batch, dim, generator)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Complex, Float
from torch import Generator, Tensor

Law = Callable[[int, int, Generator], Tensor]


def _signs(batch: int, dim: int, generator: Generator) -> Tensor:
    return 2.0 * torch.randint(2, (batch, dim), generator=generator) - 1.0


def _sparse(batch: int, dim: int, generator: Generator) -> Tensor:
    place = torch.randint(dim, (batch, 1), generator=generator)
    return torch.zeros(batch, dim).scatter(1, place, _signs(batch, 1, generator))


def _gaussian(batch: int, dim: int, generator: Generator) -> Tensor:
    return torch.randn(batch, dim, generator=generator)


def _mixed(batch: int, dim: int, generator: Generator) -> Tensor:
    first = torch.randint(2, (batch, 1), generator=generator).bool()
    return torch.where(first, _gaussian(batch, dim, generator), _signs(batch, dim, generator))


# ones: every coordinate 1. sparse: one coordinate, +1 or -1. signs: every coordinate +1 or -1. uniform: on [-1, 1].
# mixed: half of the sequences gaussian, half signs.
LAWS: dict[str, Law] = {
    "ones": lambda batch, dim, generator: torch.ones(batch, dim),
    "gaussian": _gaussian,
    "sparse": _sparse,
    "signs": _signs,
    "uniform": lambda batch, dim, generator: 2 * torch.rand(batch, dim, generator=generator) - 1,
    "mixed": _mixed,
}


def check_scale(scale: float) -> None:
    """Raise ``ValueError`` unless ``scale`` is positive."""
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")


def first_values(
    law: str | Law, dim: int, batch: int, generator: Generator, scale: float = 1.0
) -> Float[Tensor, "batch dim"]:
    """Draws of x_1, ``scale`` times what ``law`` gives.

    Raises:
        ValueError: an unknown law, a size below 1, ``scale`` not positive, or a law whose draws are not real and finite
            of shape (batch, dim).
        TypeError: ``law`` is neither a name nor callable.
    """
    check_scale(scale)
    for name, value in (("dim", dim), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if isinstance(law, str):
        if law not in LAWS:
            raise ValueError(f"law must be one of {sorted(LAWS)} or a function, got {law!r}")
        law = LAWS[law]
    if not callable(law):
        raise TypeError(f"law must be a name or a function, got {type(law).__name__}")
    drawn = law(batch, dim, generator)
    if not isinstance(drawn, Tensor) or tuple(drawn.shape) != (batch, dim):
        got = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
        raise ValueError(f"law must give a tensor of shape {(batch, dim)}, got {got}")
    if drawn.is_complex() or not drawn.isfinite().all():
        raise ValueError(f"law must give real and finite values, got {drawn.dtype} with values that are not so")
    return scale * drawn


def ar_sequences(
    law: str | Law,
    dim: int,
    length: int,
    batch: int,
    seed: int,
    *,
    scale: float = 1.0,
    phases: Complex[Tensor, "*batch dim"] | None = None,
) -> Complex[Tensor, "batch length dim"]:
    """Sequences x_{t+1} = W x_t with W = diag(exp(i theta_j)), theta uniform, a new W for each sequence.

    Args:
        law: of x_1, a name in ``LAWS`` or ``law(batch, dim, generator)``; float64 draws give complex128 sequences.
        length: T, at least 3: two tokens to learn from and one to forecast.
        scale: factor on x_1.
        phases: the diagonal of W instead of random ones, (dim,) for all sequences or (batch, dim).

    Raises:
        ValueError: a size too small, ``scale`` not positive, an unknown law, or phases not of modulus one.
    """
    if length < 3:
        raise ValueError(f"length must be at least 3, got {length}")
    generator = torch.Generator().manual_seed(seed)
    first = first_values(law, dim, batch, generator, scale)
    if phases is None:
        angle = 2 * torch.pi * torch.rand(batch, dim, generator=generator, dtype=torch.float64)
    else:
        angle = _angle(phases, batch, dim)
    # Angles in double precision: an error of 1e-7 in one would be 1e-5 after a hundred turns.
    steps = torch.arange(length, dtype=torch.float64).unsqueeze(-1)
    turns = torch.polar(torch.ones((), dtype=torch.float64), angle.unsqueeze(-2) * steps)
    turned = first.unsqueeze(-2) * turns
    return turned if first.dtype == torch.float64 else turned.to(torch.complex64)


def _angle(phases: Tensor, batch: int, dim: int) -> Float[Tensor, "*batch dim"]:
    """Angles of a given diagonal; ``ValueError`` names the first entry that is not of modulus one."""
    if tuple(phases.shape) not in ((dim,), (batch, dim)):
        raise ValueError(f"phases must have shape {(dim,)} or {(batch, dim)}, got {tuple(phases.shape)}")
    wrong = ((phases.abs() - 1).abs() > 1e-5) | ~phases.isfinite()
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(f"phases must be of modulus one, got {phases[place].item()} at {place}: W is not unitary")
    return phases.to(torch.complex128).angle()
