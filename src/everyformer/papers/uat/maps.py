"""The maps that the claims are checked on: sequences (batch, tokens, dim) to sequences of the same shape, on [0, 1]."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Map:
    """A map and a constant L with max |f(x) - f(y)| <= L sum |x - y|; ``equivariant`` under permutation of tokens."""

    name: str
    f: Callable[[Tensor], Tensor]
    lipschitz: float


def mean(x: Tensor) -> Tensor:
    """Every token becomes the mean of all."""
    return x.mean(1, keepdim=True).expand_as(x)


def products(x: Tensor) -> Tensor:
    """Token i becomes the product of the coordinates up to i: not equivariant."""
    return x.flatten(1).cumprod(1).unflatten(1, x.shape[1:])


def smooth_sort(x: Tensor, sharpness: float = 4.0) -> Tensor:
    """Ranks by differences of smooth sums of the k largest, at the given sharpness, over all coordinates."""
    flat = x.flatten(1)
    tops = [torch.zeros_like(flat[:, :1])]
    for k in range(1, flat.shape[1]):
        subsets = torch.combinations(torch.arange(flat.shape[1]), k)
        tops.append(flat[:, subsets].sum(-1).mul(sharpness).logsumexp(-1, keepdim=True) / sharpness)
    tops.append(flat.sum(-1, keepdim=True))
    return torch.cat(tops, -1).diff(dim=-1).unflatten(1, x.shape[1:])


def max_min(x: Tensor) -> Tensor:
    """The coordinates in falling order: max first, min last."""
    return x.flatten(1).sort(-1, descending=True).values.unflatten(1, x.shape[1:])


def attention_like(x: Tensor) -> Tensor:
    """Softmax attention of the coordinates among themselves, logits twice the products."""
    flat = x.flatten(1)
    weights = (2 * flat[:, :, None] * flat[:, None]).softmax(-1)
    return (weights @ flat[:, :, None]).squeeze(-1).unflatten(1, x.shape[1:])


def hard_row(x: Tensor) -> Tensor:
    """[sin(3 x1 x2), x2 cos(2 x1)], and exp(-x3) for a third coordinate: slopes at every border."""
    a, b, *rest = x.flatten(1).unbind(-1)
    parts = [torch.sin(3 * a * b), b * torch.cos(2 * a), *[torch.exp(-c) for c in rest]]
    return torch.stack(parts, -1).unflatten(1, x.shape[1:])


def random_fourier(seed: int, size: int, terms: int = 6, frequency: float = 3.0) -> Map:
    """A random sum of plane waves over ``size`` coordinates, scaled so that the Lipschitz constant is at most 2."""
    generator = torch.Generator().manual_seed(seed)
    w = frequency * torch.randn(terms, size, generator=generator, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(terms, generator=generator, dtype=torch.float64)
    out = torch.randn(terms, size, generator=generator, dtype=torch.float64)
    out *= 2.0 / (out.abs().T @ w.abs()).max()

    def f(x: Tensor) -> Tensor:
        waves = torch.sin(x.flatten(1) @ w.to(x.dtype).T + phase.to(x.dtype))
        return (waves @ out.to(x.dtype)).unflatten(1, x.shape[1:])

    return Map("random Fourier map", f, 2.0)


def family(tokens: int, dim: int, seed: int) -> list[Map]:
    """The seven maps for this shape; ``seed`` draws the random one."""
    size = tokens * dim
    return [
        Map("mean", mean, 1.0 / tokens if tokens > 1 else 1.0),
        Map("products", products, 1.0),
        Map("smooth sort", smooth_sort, 1.0),
        Map("max and min", max_min, 1.0),
        Map("attention-like", attention_like, 1.7),
        Map("sin(3 x1 x2), x2 cos(2 x1)", hard_row, 3.0),
        random_fourier(seed, size),
    ]
