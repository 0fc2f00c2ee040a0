"""Turbulence between two walls: a direct solver of channel flow at constant mass flux, and a seeded data set made by it.

``channel(trajectories, snapshots, ...)`` -> velocity ``(trajectories, snapshots, kx, ky, kz, 3)`` (float32, cached) and
the wall-normal points ``y (ky,)`` from wall (-1) to wall (1). Components are streamwise x, wall-normal y, spanwise z.
Units: half the distance of the walls, and the bulk velocity; the viscosity is 1 / reynolds.

:class:`ChannelFlow` is usable alone: ``step(velocity, count)`` gives a velocity ``(batch, nx, ny, nz, 3)`` ``count`` steps
of ``dt`` later.

Method: Fourier in x and z, polynomials on the Legendre-Gauss-Lobatto points in y. The equations are projected on the
divergence-free fields that vanish at the walls, so that the pressure drops out; every field is written in the
eigenfunctions of viscosity there (Stokes modes), in which Crank and Nicolson's implicit step is a division. The rest
goes by the three-stage Runge-Kutta scheme of Spalart, Moser & Rogers (J. Comput. Phys. 96, 1991), in the rotational
form and without aliasing in x and z. That form and the projection keep the energy of a flow without viscosity.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from everyformer.lab import turbulence
from everyformer.lab.simulated import load_or_make

MINIMAL_BOX = (math.pi, 0.34 * math.pi)
"""Length and width, in half-heights, just large enough for turbulence (Jimenez & Moin, J. Fluid Mech. 225, 1991)."""

BATCH = 4  # at most so many trajectories are simulated side by side, as one part of the cache
# Weights of a stage: implicit before and after, explicit now and before (Spalart, Moser & Rogers, appendix A).
_STAGES = ((29 / 96, 37 / 160, 8 / 15, 0.0), (-3 / 40, 5 / 24, 5 / 12, -17 / 60), (1 / 6, 1 / 6, 3 / 4, -5 / 12))


def wall_points(count: int) -> tuple[Float[Tensor, " count"], Float[Tensor, " count"], Float[Tensor, "count count"]]:
    """Legendre-Gauss-Lobatto points of [-1, 1], their quadrature weights, and the matrix that differentiates there.

    All float64. Canuto et al., Spectral Methods (2006), section 2.3.

    Raises:
        ValueError: fewer than 3 points.
    """
    if count < 3:
        raise ValueError(f"count must be at least 3, got {count}")
    degree = count - 1
    legendre = np.polynomial.legendre.Legendre.basis(degree)
    inner = np.sort(legendre.deriv().roots().real)
    for _ in range(3):  # roots of a companion matrix, polished by Newton's method
        inner = inner - legendre.deriv()(inner) / legendre.deriv(2)(inner)
    y = np.concatenate([[-1.0], inner, [1.0]])
    y = (y - y[::-1]) / 2
    value = legendre(y)
    with np.errstate(divide="ignore"):
        slope = value[:, None] / value[None] / (y[:, None] - y[None])
    np.fill_diagonal(slope, 0.0)
    np.fill_diagonal(slope, -slope.sum(1))  # the slope of a constant is zero, to the last digit
    weights = 2 / (degree * count * value**2)
    return torch.from_numpy(y), torch.from_numpy(weights), torch.from_numpy(slope)


class ChannelFlow:
    """Flow between walls at y = -1 and 1, periodic along x and z, at a bulk velocity of 1.

    Args:
        grid: points along x and z (even, at least 8) and along y (at least 9).
        reynolds: bulk velocity times half-height over viscosity.
        lengths: of the box along x and z.
        dt: time step.

    Raises:
        ValueError: an argument out of range; from ``step``, a field of another shape or a time step that is too long.
    """

    def __init__(
        self,
        grid: tuple[int, int, int] = (24, 41, 24),
        *,
        reynolds: float = 1800.0,
        lengths: tuple[float, float] = MINIMAL_BOX,
        dt: float = 0.04,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        nx, ny, nz = grid
        if nx < 8 or nz < 8 or nx % 2 or nz % 2 or ny < 9:
            raise ValueError(f"grid must be even and at least 8 along x and z, and at least 9 along y, got {grid}")
        if reynolds <= 0 or dt <= 0 or min(lengths) <= 0:
            raise ValueError(f"reynolds, dt and lengths must be positive, got {reynolds}, {dt}, {lengths}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.grid, self.reynolds, self.lengths, self.dt = grid, reynolds, lengths, dt
        self.dtype, self.device, self.viscosity = dtype, torch.device(device), 1 / reynolds
        points, weights, slope = wall_points(ny)
        cut_x, cut_z = (nx - 1) // 3, (nz - 1) // 3  # the largest waves that the 2/3 rule keeps
        along = torch.tensor([*range(cut_x + 1), *range(-cut_x, 0)])
        self._rows, self._columns = along.remainder(nx).to(self.device), cut_z + 1
        waves = torch.meshgrid(along.double(), torch.arange(cut_z + 1).double(), indexing="ij")
        order_x, order_z = (wave.flatten() for wave in waves)
        kx, kz = order_x * (2 * math.pi / lengths[0]), order_z * (2 * math.pi / lengths[1])
        square = kx.square() + kz.square()
        kinds, which = torch.unique(square, return_inverse=True)
        kinds[0] = 1.0  # the mean flow has no wall-normal part: its place stays empty
        clamped, clamped_rate = _clamped_modes(kinds, weights, slope)
        across, across_rate = _eigen(
            *(form[1:-1, 1:-1] for form in (slope.T @ (weights[:, None] * slope), weights.diag()))
        )
        across = torch.nn.functional.pad(across, (0, 0, 1, 1))  # zero at the walls
        rates = torch.cat([clamped_rate[which], across_rate + square[:, None]], 1)
        gaps = (torch.cat([points[1:], points[-1:]]) - torch.cat([points[:1], points[:-1]])) / 2
        gaps[[0, -1]] *= 2
        pace = torch.stack([kx.max().expand(ny), math.pi / gaps, kz.max().expand(ny)])

        def kept(tensor: Tensor) -> Tensor:
            return tensor.to(dtype=dtype, device=self.device).contiguous()

        self.y = kept(points)
        """Wall-normal points (ny,), from wall to wall."""
        self.weights = kept(weights)
        """Quadrature weights (ny,) of the points; they sum to 2."""
        self._slope, self._clamped, self._across = kept(slope), kept(clamped[which]), kept(across)
        self._kx, self._kz, self._square = (kept(wave)[:, None, None] for wave in (kx, kz, square))
        self._inverse = kept(torch.where(square > 0, 1 / square.clamp(min=1e-9), 1.0))[:, None, None]
        self._eddies = kept(torch.exp(-(order_x.square() + order_z.square()) / 4) * (square > 0))[:, None, None]
        self._twice = kept(torch.where(kz > 0, 2.0, 1.0))[:, None, None]  # a wave with kz > 0 stands for -kz as well
        self._fading = kept(rates * self.viscosity)[..., None]
        # A uniform force along x, in the modes of the mean flow.
        self._push = torch.cat([kept(torch.zeros(ny - 4)), kept(across.T @ weights)])[:, None]
        self._pace = kept(pace)[:, :, None, None]  # the largest wave number along each axis

    @torch.no_grad()
    def initial(self, batch: int, generator: torch.Generator) -> Float[Tensor, "batch nx ny nz 3"]:
        """A blunt mean profile with large random eddies of rms 0.1 on it, from which turbulence develops."""
        nx, _, nz = self.grid
        noise = torch.randn((batch, 3, 8, nx, nz), generator=generator, dtype=self.dtype).to(self.device)
        order = torch.arange(8, dtype=self.dtype, device=self.device)[:, None]
        smooth = torch.cos(order * (math.pi / 2) * (self.y + 1)) * (1 - self.y**2)
        eddies = self._flow(self._project(torch.einsum("bcoxz,oy->bcyxz", noise, smooth)) * self._eddies)[:, :3]
        mean_square = (eddies.square() * self.weights[:, None, None]).mean((1, 3, 4), keepdim=True).sum(
            2, keepdim=True
        ) / 2
        field = eddies * (0.1 / mean_square.sqrt())
        field[:, 0] += ((1 - self.y**8) * (9 / 8))[:, None, None]
        return field.permute(0, 3, 2, 4, 1).contiguous()

    @torch.no_grad()
    def step(self, velocity: Float[Tensor, "batch nx ny nz 3"], count: int = 1) -> Float[Tensor, "batch nx ny nz 3"]:
        """The velocity ``count`` time steps later.

        The bulk velocity is set to 1, and what is not free of divergence or not zero at the walls is dropped.
        """
        state = self._enter(velocity)
        for _ in range(count):
            state = self._advance(state)
        return self._flow(state)[:, :3].permute(0, 3, 2, 4, 1).contiguous()

    @torch.no_grad()
    def budget(self, velocity: Float[Tensor, "batch nx ny nz 3"]) -> Budget:
        """Energy of a flow, its dissipation and the power of the pressure gradient, per volume, each ``(batch,)``."""
        state = self._enter(velocity)
        size = (state.real.square() + state.imag.square()) * self._inverse * self._twice
        mean, (force, _) = state[0].real, self._force(state)
        gradient = (self._push * (self._fading[0] * mean - force[0].real)).sum(0) / self._push.square().sum()
        power = gradient * (self._push * mean).sum(0) / 2
        return Budget(size.sum((0, 1)) / 4, (self._fading * size).sum((0, 1)) / 2, power)

    def _advance(self, state: Complex[Tensor, "modes functions batch"]) -> Complex[Tensor, "modes functions batch"]:
        before = torch.zeros((), dtype=state.dtype, device=state.device)
        for stage, (old, new, explicit, memory) in enumerate(_STAGES):
            force, speed = self._force(state)
            if stage == 0:
                # The stability limit of the scheme on the imaginary axis.
                turbulence.check_step(self.dt, float(speed), math.sqrt(3))
            known = (1 - self.dt * old * self._fading) * state + self.dt * (explicit * force + memory * before)
            state = known / (1 + self.dt * new * self._fading)
            push = self._push / (1 + self.dt * new * self._fading[0])
            missing = 2 - (self._push * state[0].real).sum(0)  # of the mass flux
            state[0] += push * (missing / (self._push * push).sum())
            before = force
        return state

    def _enter(self, velocity: Float[Tensor, "batch nx ny nz 3"]) -> Complex[Tensor, "modes functions batch"]:
        if tuple(velocity.shape[1:]) != (*self.grid, 3):
            raise ValueError(f"velocity must have the shape (batch, *{(*self.grid, 3)}), got {tuple(velocity.shape)}")
        if velocity.dtype != self.dtype:
            raise ValueError(f"velocity must be {self.dtype} as the solver, got {velocity.dtype}")
        return self._project(velocity.permute(0, 4, 2, 1, 3).contiguous())

    def _force(self, state: Complex[Tensor, "modes functions batch"]) -> tuple[Complex[Tensor, "..."], Tensor]:
        """Velocity times vorticity, and the largest sum of |velocity| times wave number over the components."""
        fields = self._flow(state)
        velocity, vorticity = fields[:, :3], fields[:, 3:]
        return self._project(torch.linalg.cross(velocity, vorticity, dim=1)), (velocity.abs() * self._pace).sum(
            1
        ).amax()

    def _project(self, field: Float[Tensor, "batch 3 ny nx nz"]) -> Complex[Tensor, "modes functions batch"]:
        """The coefficients of the nearest field without divergence that is zero at the walls.

        For a wave, first those of the wall-normal velocity, then those of the wall-normal vorticity. The mean flow has
        neither; its streamwise and spanwise velocity are the real and the imaginary part of the latter.
        """
        waves = torch.fft.rfft2(field, norm="forward")[..., : self._columns].index_select(-2, self._rows)
        x, y, z = waves.permute(3, 4, 1, 2, 0).flatten(0, 1).unbind(1)
        weights = self.weights[:, None]
        spread = _times(self._slope.T, weights * 1j * (self._kx * x + self._kz * z))
        spin = 1j * (self._kz * x - self._kx * z)
        spin[0] = torch.complex(x[0].real, z[0].real)
        vertical = _times(self._clamped.mT, weights * (self._square * y) - spread)
        vertical[0] = 0.0
        return torch.cat([vertical, _times(self._across.T, weights * spin)], 1)

    def _flow(self, state: Complex[Tensor, "modes functions batch"]) -> Float[Tensor, "batch 6 ny nx nz"]:
        """Velocity and vorticity on the grid."""
        nx, _, nz = self.grid
        functions = self._clamped.shape[2]
        y = _times(self._clamped, state[:, :functions].contiguous())
        spin = _times(self._across, state[:, functions:].contiguous())
        rise = _times(self._slope, y)
        x = 1j * self._inverse * (self._kx * rise - self._kz * spin)
        z = 1j * self._inverse * (self._kz * rise + self._kx * spin)
        x[0], z[0] = spin[0].real.to(x.dtype), spin[0].imag.to(x.dtype)
        spin[0] = 0.0
        curl_x, curl_z = _times(self._slope, z) - 1j * self._kz * y, 1j * self._kx * y - _times(self._slope, x)
        waves = torch.stack([x, y, z, curl_x, spin, curl_z], 1).permute(3, 1, 2, 0)
        full = waves.new_zeros((*waves.shape[:3], nx, nz // 2 + 1))
        full[..., self._rows, : self._columns] = waves.reshape(*waves.shape[:3], len(self._rows), self._columns)
        fields: Tensor = torch.fft.irfft2(full, s=(nx, nz), norm="forward")
        return fields


@dataclasses.dataclass(frozen=True)
class Budget:
    """Energy per volume, and the rates at which it is lost to viscosity and put in by the pressure gradient."""

    energy: Float[Tensor, " batch"]
    dissipation: Float[Tensor, " batch"]
    power: Float[Tensor, " batch"]


def _times(matrix: Float[Tensor, "*modes rows n"], columns: Complex[Tensor, "modes n batch"]) -> Complex[Tensor, "..."]:
    """A real matrix times complex columns."""
    pairs = matrix @ torch.view_as_real(columns).flatten(-2)
    return torch.view_as_complex(pairs.view(*pairs.shape[:-1], -1, 2))


def _eigen(stiffness: Float[Tensor, "*batch n n"], mass: Float[Tensor, "*batch n n"]) -> tuple[Tensor, Tensor]:
    """Vectors (columns, orthonormal in ``mass``) and values of the symmetric problem stiffness x = value mass x."""
    root = torch.linalg.cholesky(mass)
    half = torch.linalg.solve_triangular(root, stiffness, upper=False)
    values, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.mT, upper=False))
    return torch.linalg.solve_triangular(root.mT, vectors, upper=True), values


def _clamped_modes(
    squares: Float[Tensor, " kinds"], weights: Float[Tensor, " ny"], slope: Float[Tensor, "ny ny"]
) -> tuple[Float[Tensor, "kinds ny n"], Float[Tensor, "kinds n"]]:
    """Wall-normal velocities of the modes of viscosity, and their rates of decay at viscosity 1, for each kx^2 + kz^2.

    They and their slopes vanish at the walls. The forms are kx^2 + kz^2 times the energy and the dissipation of the
    field (u, v, w) that has this v and no wall-normal vorticity.
    """
    held = torch.zeros(4, len(weights), dtype=weights.dtype)
    held[0, 0] = held[1, -1] = 1.0
    held[2:] = slope[[0, -1]]
    basis = torch.linalg.svd(held).Vh[4:].T
    plain, first, second = (f.T @ (weights[:, None] * f) for f in (basis, slope @ basis, slope @ slope @ basis))
    k2 = squares[:, None, None]
    vectors, values = _eigen(k2.square() * plain + 2 * k2 * first + second, k2 * plain + first)
    return basis @ vectors, values


def channel(
    trajectories: int,
    snapshots: int,
    *,
    grid: tuple[int, int, int] = (24, 41, 24),
    keep: tuple[int, int, int] = (12, 21, 12),
    interval: float = 0.4,
    seed: int,
    reynolds: float = 1800.0,
    lengths: tuple[float, float] = MINIMAL_BOX,
    dt: float = 0.04,
    spinup: float = 80.0,
) -> tuple[Float[Tensor, "trajectories snapshots kx ky kz 3"], Float[Tensor, " ky"]]:
    """Velocities of turbulent channel flow, ``interval`` apart after ``spinup``, and their wall-normal points.

    Along x and z sharply filtered to ``keep`` points; along y every so many points, the walls among them.

    Raises:
        ValueError: a count below 1, ``keep`` wider than ``grid`` or not dividing its steps along y, an interval that is
            no multiple of ``dt``, or a ``dt`` that is too long for the flow.
    """
    if trajectories < 1 or snapshots < 1:
        raise ValueError(f"trajectories and snapshots must be at least 1, got {trajectories} and {snapshots}")
    solver = ChannelFlow(grid, reynolds=reynolds, lengths=lengths, dt=dt)
    for axis in (0, 2):
        if keep[axis] % 2 or not 2 <= keep[axis] <= grid[axis]:
            raise ValueError(f"keep must be even and at most {grid} along x and z, got {keep}")
    if keep[1] < 2 or (grid[1] - 1) % (keep[1] - 1):
        raise ValueError(f"keep must divide the {grid[1] - 1} steps along y, as {grid[1] // 2 + 1} does, got {keep[1]}")
    stride = (grid[1] - 1) // (keep[1] - 1)
    count = turbulence.steps_of(interval, dt, "interval")
    warm = turbulence.steps_of(spinup, dt, "spinup")
    batch = math.gcd(trajectories, BATCH)

    def view(velocity: Tensor) -> Tensor:
        return turbulence.sharp_filter(turbulence.sharp_filter(velocity[:, :, ::stride], keep[0], 1), keep[2], 3)

    def make(part: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * seed + part)
        start = solver.step(solver.initial(batch, generator), warm)
        return {"velocity": turbulence.trajectory(solver.step, start, snapshots, count, view)}

    settings: dict[str, Any] = {
        "grid": grid, "keep": keep, "reynolds": reynolds, "lengths": lengths, "dt": dt,
        "snapshots": snapshots, "count": count, "warm": warm, "seed": seed, "batch": batch,
    }  # fmt: skip
    made = load_or_make(
        "channel", make, parts=trajectories // batch, settings=settings, code=[sys.modules[__name__], turbulence]
    )
    return made["velocity"], solver.y[::stride].clone()
