"""IFactFormer: attention factorised over the axes of a grid, iterated with shared weights (arXiv 2412.18840).

A field (batch, *grid, dim) of two or three dimensions is mixed along one axis at a time, as in FactFormer (arXiv
2305.17560): the points of an axis are summarised by their mean over the other axes, and the products of queries and keys
of these summaries are the axis's kernel, without a softmax. The original applies the kernels one after the other
(``"chained"``, IFactFormer-o); the paper applies each to the same values and puts the results side by side
(``"parallel"``, IFactFormer-m). The cost for N points is O(N * sum of the axes' lengths), where attention has O(N^2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Attention = Literal["parallel", "chained"]
Field = Float[Tensor, "batch *grid dim"]
Kernel = Float[Tensor, "batch heads points points"]
Coordinates = Sequence[Float[Tensor, " points"]]

KERNEL_WIDTH = 3  # width of a head's queries and keys, as a multiple of its values'
NEAREST = 1 / 64  # a distance that turns the fastest pair of features by one radian
SMALL = 0.02  # gain of the first queries and keys: kernels start near zero
SPREAD = 8.0  # of the random frequencies that tell places
EPS = 1e-5


class AxisKernel(nn.Module):
    """The kernel of one axis, from the means of a field at the axis's points.

    Takes means (batch, points, dim) and the points' coordinates (points,), in the unit of length that ``NEAREST`` has;
    gives (batch, heads, points, points), the last axis being the one to sum over.
    """

    rates: Tensor

    def __init__(self, dim: int, *, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.enter = nn.Linear(dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.gated, self.leave = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.query, self.key = (nn.Linear(dim, heads * width, bias=False) for _ in range(2))
        for projection in (self.query, self.key):
            nn.init.xavier_uniform_(projection.weight, gain=SMALL)
        self.register_buffer("rates", 1.0 / (10_000 ** (torch.arange(0, width, 2).float() / width)))

    def forward(self, means: Float[Tensor, "batch points dim"], where: Float[Tensor, " points"]) -> Kernel:
        gate, content = self.gated(self.norm(self.enter(means))).chunk(2, dim=-1)
        summary = self.leave(F.gelu(gate) * content)
        angles = where.to(self.rates.dtype)[:, None] / NEAREST * self.rates
        cos, sin = angles.cos(), angles.sin()
        query, key = (self._turned(projection(summary), cos, sin) for projection in (self.query, self.key))
        return query @ key.mT

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Heads in front, their features turned by the point's angles: each of the first half with one of the second."""
        first, second = x.unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class FactorizedAttention(nn.Module):
    """A block of factorised attention on a field of two or three dimensions; it adds nothing to its input itself.

    Takes a field (batch, *grid, dim) and for each axis of the grid the coordinates (points,); gives (batch, *grid, dim).

    Args:
        dim: features of a point.
        heads, head_dim: heads and width of their values; queries and keys are three times as wide.
        dims: axes of the grid, 2 or 3.
        attention: ``"parallel"`` is the paper's, ``"chained"`` the original.

    Raises:
        ValueError: a size that cannot be used; a field or coordinates that do not fit one another.
    """

    def __init__(
        self, dim: int, *, heads: int, head_dim: int, dims: int = 3, attention: Attention = "parallel"
    ) -> None:
        super().__init__()
        for name, size in {"dim": dim, "heads": heads, "head_dim": head_dim}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {head_dim}")
        if dims not in (2, 3):
            raise ValueError(f"dims must be 2 or 3, got {dims}")
        if attention not in ("parallel", "chained"):
            raise ValueError(f"attention must be 'parallel' or 'chained', got {attention!r}")
        self.heads, self.dims, self.attention = heads, dims, attention
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.value = nn.Linear(dim, heads * head_dim, bias=False)
        self.shared = nn.Linear(dim, dim, bias=False)
        self.axes = nn.ModuleList(AxisKernel(dim, heads=heads, width=KERNEL_WIDTH * head_dim) for _ in range(dims))
        branches = dims if attention == "parallel" else 1
        self.mix = nn.Linear(branches * heads * head_dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Field, coordinates: Coordinates) -> Field:
        check_grid(x, coordinates, self.dims)
        x = self.norm(x)
        means = self._means(x)
        kernels = self._kernels(means, coordinates)
        value = self.value(x).unflatten(-1, (self.heads, -1)).movedim(-2, 1).contiguous()
        if self.attention == "parallel":
            # The values' means are the values of the means: none has to be taken of the wide values themselves.
            centres = [self._heads(self.value(mean)) for mean in means]
            mixed = [
                along(kernel, value, axis, less=kernel.mean(2, keepdim=True) @ centre)
                for axis, (kernel, centre) in enumerate(zip(kernels, centres, strict=True))
            ]
        else:
            for axis, kernel in enumerate(kernels[:-1]):
                value = along(kernel, value, axis)
            centre = value.mean(tuple(range(2, self.dims + 1)))
            mixed = [along(kernels[-1], value, self.dims - 1, less=kernels[-1].mean(2, keepdim=True) @ centre)]
        return self.out(F.gelu(self._normed_and_mixed(mixed))).view_as(x)

    def kernels(self, x: Field, coordinates: Coordinates) -> list[Kernel]:
        """The kernel of every axis for a field."""
        check_grid(x, coordinates, self.dims)
        return self._kernels(self._means(self.norm(x)), coordinates)

    def _means(self, x: Field) -> list[Float[Tensor, "batch points dim"]]:
        """At the points of every axis, the mean over the other axes."""
        grid = range(1, self.dims + 1)
        return [x.mean([other for other in grid if other != axis]) for axis in grid]

    def _kernels(self, means: list[Tensor], coordinates: Coordinates) -> list[Kernel]:
        # Means commute with linear maps: taken first, they spare a product of the whole grid for every map and axis.
        pairs = zip(self.axes, means, coordinates, strict=True)
        return [kernel(self.shared(mean), where) for kernel, mean, where in pairs]

    def _heads(self, x: Float[Tensor, "batch points width"]) -> Float[Tensor, "batch heads points head_dim"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _normed_and_mixed(self, centred: list[Float[Tensor, "batch heads *grid width"]]) -> Tensor:
        """Instance norm of values whose means are zero already, then ``mix``, which takes the scale of the norm."""
        flat = [value.flatten(2, -2) for value in centred]
        points = flat[0].shape[2]
        square = torch.stack([torch.linalg.vector_norm(value, dim=2) ** 2 for value in flat], dim=2) / points
        scale = torch.rsqrt(square + EPS)  # (batch, heads, branches, width), the order of mix's inputs
        weight = self.mix.weight.unflatten(1, scale.shape[1:]) * scale[:, None]
        # Summed head by head: a product of all at once would need a copy of the wide values with the heads last.
        parts = [part for value in flat for part in value.unbind(1)]
        weights = [part.mT.to(parts[0].dtype) for branch in weight.unbind(3) for part in branch.unbind(2)]
        total = parts[0] @ weights[0]
        for part, matrix in zip(parts[1:], weights[1:], strict=True):
            total = torch.baddbmm(total, part, matrix)
        return total


def along(
    kernel: Kernel,
    value: Float[Tensor, "batch heads *grid width"],
    axis: int,
    *,
    less: Float[Tensor, "batch heads 1 width"] | None = None,
) -> Float[Tensor, "batch heads *grid width"]:
    """``value`` summed along an axis of its grid with the axis's kernel, ``less`` subtracted on the way."""
    grid, width = value.shape[2:-1], value.shape[-1]
    before, points, after = math.prod(grid[:axis]), grid[axis], math.prod(grid[axis + 1 :])
    kernels = kernel[:, :, None].expand(-1, -1, before, -1, -1).reshape(-1, points, points)
    values = value.reshape(-1, points, after * width)
    if less is None:
        return torch.bmm(kernels, values).view(value.shape)
    shift = less.unsqueeze(2).expand(-1, -1, before, after, -1).reshape(-1, 1, after * width)
    return torch.baddbmm(shift, kernels, values, beta=-1).view(value.shape)


class Lift(nn.Module):
    """Features of every point from its channels over time: a few of each channel alone, then all mixed."""

    def __init__(self, channels: int, dim: int, *, window: int) -> None:
        super().__init__()
        self.each = dim // 2 // channels
        self.scale = nn.Parameter(torch.empty(dim // 2).uniform_(-1, 1))
        self.shift = nn.Parameter(torch.empty(dim // 2).uniform_(-1, 1))
        self.mix = nn.Linear(window * (dim // 2), dim, bias=False)

    def forward(self, u: Float[Tensor, "batch time *grid channels"]) -> Field:
        features = F.gelu(u.repeat_interleave(self.each, dim=-1) * self.scale + self.shift)
        return self.mix(features.movedim(1, -2).flatten(-2))  # type: ignore[no-any-return]


class Places(nn.Module):
    """A code of every point of a grid: sines and cosines of random directions, mixed."""

    frequencies: Tensor

    def __init__(self, dim: int, *, dims: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", SPREAD * torch.randn(dims, dim // 2))
        self.mix = nn.Linear(dim, dim)

    def forward(self, coordinates: Coordinates) -> Float[Tensor, "*grid dim"]:
        points = torch.stack(torch.meshgrid(*coordinates, indexing="ij"), dim=-1)
        angles = 2 * math.pi * (points.to(self.frequencies.dtype) @ self.frequencies)
        return self.mix(torch.cat([angles.sin(), angles.cos()], dim=-1))  # type: ignore[no-any-return]


class IFactFormer(nn.Module):
    """Predicts a field from its last ``time_window`` snapshots.

    Takes u (batch, time_window, *grid, in_channels) and for each axis of the grid the coordinates (points,), evenly
    spaced or not; gives (batch, *grid, out_channels). Fields are to be scaled to mean 0 and deviation 1:
    :class:`~everyformer.papers.ifactformer.forecast.Forecaster` does so. The sizes as they come are the released ones.

    Args:
        in_channels, out_channels: numbers at a point, before and after.
        dim, heads, head_dim: see :class:`FactorizedAttention`; ``dim`` / 2 must be divisible by ``in_channels``.
        depth: blocks with weights of their own.
        iterations: how often each of them is applied, by steps of 1 / ``iterations``.
        attention: ``"parallel"`` (IFactFormer-m) or ``"chained"`` (IFactFormer-o).
        time_window: snapshots seen.
        dims: axes of the grid, 2 or 3.

    Raises:
        ValueError: a size that cannot be used; a field or coordinates that do not fit the model.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        dim: int = 96,
        heads: int = 5,
        head_dim: int = 96,
        depth: int = 1,
        iterations: int = 10,
        attention: Attention = "parallel",
        time_window: int = 1,
        dims: int = 3,
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "dim": dim, "depth": depth,
                 "iterations": iterations, "time_window": time_window}  # fmt: skip
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if dim % 2 or dim // 2 % in_channels:
            raise ValueError(f"dim / 2 must be divisible by in_channels, got dim={dim} and in_channels={in_channels}")
        self.in_channels, self.iterations, self.time_window, self.dims = in_channels, iterations, time_window, dims
        self.lift = Lift(in_channels, dim, window=time_window)
        self.places = nn.ModuleList(Places(dim, dims=dims) for _ in range(depth))
        self.blocks = nn.ModuleList(
            FactorizedAttention(dim, heads=heads, head_dim=head_dim, dims=dims, attention=attention)
            for _ in range(depth)
        )
        self.project = nn.Sequential(nn.Linear(dim, dim // 2, bias=False), nn.GELU(), nn.Linear(dim // 2, out_channels))

    def forward(
        self, u: Float[Tensor, "batch time *grid in_channels"], coordinates: Coordinates
    ) -> Float[Tensor, "batch *grid out_channels"]:
        if u.dim() != self.dims + 3 or u.shape[1] != self.time_window or u.shape[-1] != self.in_channels:
            axes = ", ".join("xyz"[: self.dims])
            raise ValueError(f"u must be (batch, {self.time_window}, {axes}, {self.in_channels}), got {tuple(u.shape)}")
        check_grid(u[:, 0], coordinates, self.dims)
        x = self.lift(u)
        for places, block in zip(self.places, self.blocks, strict=True):
            x = x + places(coordinates)
            for _ in range(self.iterations):
                x = x + block(x, coordinates) / self.iterations
        return self.project(x)  # type: ignore[no-any-return]


def check_grid(x: Field, coordinates: Coordinates, dims: int) -> None:
    """Raise ``ValueError`` if the grid of ``x`` is not of ``dims`` axes with the points of ``coordinates``."""
    if x.dim() != dims + 2:
        raise ValueError(f"the field must be (batch, {dims} axes of the grid, features), got {tuple(x.shape)}")
    shapes = [tuple(where.shape) for where in coordinates]
    if shapes != [(length,) for length in x.shape[1:-1]]:
        raise ValueError(
            f"coordinates must be a (points,) for each axis of the grid {tuple(x.shape[1:-1])}, got {shapes}"
        )


def ifactformer_m(**options: int | Attention) -> IFactFormer:
    """The released IFactFormer-m for channel flow at a friction Reynolds number of 180."""
    return IFactFormer(**{"attention": "parallel", **options})  # type: ignore[arg-type]


def ifactformer_o(**options: int | Attention) -> IFactFormer:
    """The original IFactFormer of the same sizes."""
    return IFactFormer(**{"attention": "chained", **options})  # type: ignore[arg-type]
