"""Turbulence in periodic boxes of side 2 pi: solvers in Fourier space, and seeded data sets made by them.

``isotropic(trajectories, snapshots, ...)`` -> velocity ``(trajectories, snapshots, keep, keep, keep, 3)``, float32, cached.
``kolmogorov(trajectories, snapshots, ...)`` -> velocity ``(trajectories, snapshots, keep, keep, 2)``, float32, cached.

The solvers behind them are usable alone: ``solver.initial(batch, generator)`` gives a velocity ``(batch, *grid, d)``
with the components last, and ``solver.step(velocity, count)`` gives it ``count`` steps of ``solver.dt`` later.

Products are taken in the rotational form and freed of aliasing by the 2/3 rule; time goes by Runge and Kutta's fourth
order, with the linear terms exact (integrating factor). Canuto, Hussaini, Quarteroni & Zang, Spectral Methods (2007).
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from everyformer.lab.simulated import load_or_make

BATCH = 8  # at most so many trajectories are simulated side by side, as one part of the cache
_REFRESH = 16  # steps after which the coefficients are rebuilt from a real field


class PeriodicFlow(ABC):
    """What the solvers share: wave numbers, the time step, and the checks.

    Args:
        grid: points along each axis, even and at least 8.
        dims: axes of the box.
        viscosity: kinematic; lengths are in units of box / 2 pi.
        dt: time step.
        drag: linear friction, a rate.

    Raises:
        ValueError: an argument out of range; from ``step``, a field of another shape or a time step that is too long.
    """

    def __init__(
        self,
        grid: int,
        *,
        dims: int,
        viscosity: float,
        dt: float,
        drag: float = 0.0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        if grid < 8 or grid % 2:
            raise ValueError(f"grid must be even and at least 8, got {grid}")
        if viscosity <= 0 or dt <= 0 or drag < 0:
            raise ValueError(f"viscosity and dt must be positive and drag not negative, got {viscosity}, {dt}, {drag}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.grid, self.dims, self.viscosity, self.dt, self.drag = grid, dims, viscosity, dt, drag
        self.dtype, self.device = dtype, torch.device(device)
        whole = torch.fft.fftfreq(grid, 1 / grid, dtype=dtype)
        half = torch.fft.rfftfreq(grid, 1 / grid, dtype=dtype)
        self._k = torch.stack(torch.meshgrid(*[whole] * (dims - 1), half, indexing="ij")).to(self.device)
        self._square = self._k.square().sum(0)
        self._inverse = torch.where(self._square > 0, 1 / self._square.clamp(min=1), 0.0)
        self._cutoff = (grid - 1) // 3  # the largest wave number that the 2/3 rule keeps
        self._kept = (self._k.abs() <= self._cutoff).all(0).to(dtype)
        self._decay = torch.exp(-(viscosity * self._square + drag) * (dt / 2))
        self._axes = tuple(range(-dims, 0))

    @abstractmethod
    def _enter(self, velocity: Float[Tensor, "batch d *grid"]) -> Complex[Tensor, "batch c *modes"]:
        """Coefficients of what is stepped, from a velocity."""

    @abstractmethod
    def _leave(self, state: Complex[Tensor, "batch c *modes"]) -> Float[Tensor, "batch d *grid"]:
        """The velocity of these coefficients."""

    @abstractmethod
    def _rate(self, state: Complex[Tensor, "batch c *modes"]) -> tuple[Complex[Tensor, "batch c *modes"], Tensor]:
        """Time derivative without the linear terms, and the largest sum of |velocity components| in the box."""

    def _forced(self, state: Complex[Tensor, "batch c *modes"]) -> Complex[Tensor, "batch c *modes"]:
        """What is done to the coefficients after a step."""
        return state

    @torch.no_grad()
    def initial(self, batch: int, generator: torch.Generator) -> Float[Tensor, "batch *grid d"]:
        """Random velocities without divergence, most of the energy near wave number 2, a component's mean square 1.

        Where the solver holds the energy of some waves, they have it from the start.
        """
        shape = (batch, self.dims, *[self.grid] * self.dims)
        noise = torch.randn(shape, generator=generator, dtype=self.dtype).to(self.device)
        fading = self._square.sqrt() * torch.exp(-self._square / 4)
        velocity = self._real(self._project(self._fourier(noise) * fading))
        size = velocity.square().flatten(1).mean(1).sqrt()
        state = self._enter(velocity / size.view(-1, *[1] * (self.dims + 1)))
        return self._leave(self._forced(state)).movedim(1, -1).contiguous()

    @torch.no_grad()
    def step(self, velocity: Float[Tensor, "batch *grid d"], count: int = 1) -> Float[Tensor, "batch *grid d"]:
        """The velocity ``count`` time steps later."""
        expected = (*[self.grid] * self.dims, self.dims)
        if tuple(velocity.shape[1:]) != expected:
            raise ValueError(f"velocity must have the shape (batch, *{expected}), got {tuple(velocity.shape)}")
        if velocity.dtype != self.dtype:
            raise ValueError(f"velocity must be {self.dtype} as the solver, got {velocity.dtype}")
        state = self._enter(velocity.movedim(-1, 1).contiguous())
        for number in range(count):
            # Rounding lets coefficients of k and -k drift apart; no product sees that part, but forcing would amplify it.
            if number % _REFRESH == _REFRESH - 1:
                state = self._enter(self._leave(state))
            state = self._advance(state)
        return self._leave(state).movedim(1, -1).contiguous()

    def _advance(self, state: Complex[Tensor, "batch c *modes"]) -> Complex[Tensor, "batch c *modes"]:
        dt, decay = self.dt, self._decay
        first, speed = self._rate(state)
        # The stability limit of fourth order on the imaginary axis.
        check_step(dt, float(speed), 2.8 / self._cutoff)
        faded = decay * state
        second, _ = self._rate(faded + (dt / 2) * decay * first)
        third, _ = self._rate(faded + (dt / 2) * second)
        fourth, _ = self._rate(decay * (faded + dt * third))
        ahead = decay * (faded + (dt / 6) * (decay * first + 2 * (second + third))) + (dt / 6) * fourth
        return self._forced(ahead)

    def _fourier(self, field: Float[Tensor, "batch c *grid"]) -> Complex[Tensor, "batch c *modes"]:
        waves: Tensor = torch.fft.rfftn(field, dim=self._axes, norm="forward")
        return waves

    def _real(self, coefficients: Complex[Tensor, "batch c *modes"]) -> Float[Tensor, "batch c *grid"]:
        field: Tensor = torch.fft.irfftn(coefficients, s=[self.grid] * self.dims, dim=self._axes, norm="forward")
        return field

    def _project(self, field: Complex[Tensor, "batch d *modes"]) -> Complex[Tensor, "batch d *modes"]:
        """The divergence-free part, without the wave numbers that the 2/3 rule drops."""
        pressure = (self._k * field).sum(1, keepdim=True) * self._inverse
        return (field - self._k * pressure) * self._kept


class KolmogorovFlow(PeriodicFlow):
    """Two-dimensional flow in the vorticity form, driven along x by ``forcing * sin(wavenumber * y)``; 0 lets it decay.

    The setting of Chandler & Kerswell (J. Fluid Mech. 722, 2013), with linear drag. A mean over the box is not kept.
    """

    def __init__(
        self,
        grid: int = 64,
        *,
        viscosity: float = 0.005,
        dt: float = 0.016,
        forcing: float = 1.0,
        wavenumber: int = 4,
        drag: float = 0.1,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(grid, dims=2, viscosity=viscosity, dt=dt, drag=drag, dtype=dtype, device=device)
        if not 1 <= wavenumber <= self._cutoff:
            raise ValueError(f"wavenumber must be 1 to {self._cutoff} on this grid, got {wavenumber}")
        y = torch.arange(grid, dtype=dtype) * (2 * math.pi / grid)
        along = (forcing * torch.sin(wavenumber * y)).expand(grid, grid)
        self.force = torch.stack([along, torch.zeros_like(along)], -1).to(self.device)
        """Body force (grid, grid, 2), per mass."""
        self._stir = self._curl(self._fourier(self.force.movedim(-1, 0)[None]))

    def _curl(self, velocity: Complex[Tensor, "batch 2 *modes"]) -> Complex[Tensor, "batch 1 *modes"]:
        return (1j * (self._k[0] * velocity[:, 1] - self._k[1] * velocity[:, 0]) * self._kept)[:, None]

    def _induced(self, vorticity: Complex[Tensor, "batch 1 *modes"]) -> Complex[Tensor, "batch 2 *modes"]:
        stream = 1j * self._inverse * vorticity
        return torch.cat([self._k[1] * stream, -self._k[0] * stream], 1)

    def _enter(self, velocity: Float[Tensor, "batch d *grid"]) -> Complex[Tensor, "batch c *modes"]:
        return self._curl(self._fourier(velocity))

    def _leave(self, state: Complex[Tensor, "batch c *modes"]) -> Float[Tensor, "batch d *grid"]:
        return self._real(self._induced(state))

    def _rate(self, state: Complex[Tensor, "batch c *modes"]) -> tuple[Complex[Tensor, "batch c *modes"], Tensor]:
        fields = self._real(torch.cat([self._induced(state), state], 1))
        velocity, vorticity = fields[:, :2], fields[:, 2:]
        flux = self._fourier(velocity * vorticity)
        return self._stir - 1j * self._kept * (self._k * flux).sum(1, keepdim=True), velocity.abs().sum(1).amax()


class IsotropicFlow(PeriodicFlow):
    """Three-dimensional turbulence; the energies of the first shells of wave numbers are held at ``shells``; () decays.

    Shell k holds the modes with k - 1/2 <= |k| < k + 1/2. The default energies follow k^(-5/3).
    """

    def __init__(
        self,
        grid: int = 32,
        *,
        viscosity: float = 0.04,
        dt: float = 0.025,
        shells: tuple[float, ...] = (1.24, 0.39),
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(grid, dims=3, viscosity=viscosity, dt=dt, dtype=dtype, device=device)
        if any(energy <= 0 for energy in shells):
            raise ValueError(f"shells must be positive energies, got {shells}")
        self.shells = shells
        radius = self._square.sqrt().add(0.5).floor().flatten()
        self._members = torch.nonzero((radius >= 1) & (radius <= len(shells)))[:, 0]
        self._of = radius[self._members].long() - 1
        # A coefficient of the half spectrum stands for two modes, except where the last wave number is zero.
        self._twice = torch.where(self._k[2].flatten()[self._members] == 0, 0.5, 1.0).to(dtype)
        self._goal = torch.tensor(shells, dtype=dtype, device=self.device)

    def _enter(self, velocity: Float[Tensor, "batch d *grid"]) -> Complex[Tensor, "batch c *modes"]:
        return self._project(self._fourier(velocity))

    def _leave(self, state: Complex[Tensor, "batch c *modes"]) -> Float[Tensor, "batch d *grid"]:
        return self._real(state)

    def _rate(self, state: Complex[Tensor, "batch c *modes"]) -> tuple[Complex[Tensor, "batch c *modes"], Tensor]:
        wave = 1j * self._k
        x, y, z = state.unbind(1)
        curl = torch.stack([wave[1] * z - wave[2] * y, wave[2] * x - wave[0] * z, wave[0] * y - wave[1] * x], 1)
        velocity, vorticity = self._real(state), self._real(curl)
        product = self._fourier(torch.linalg.cross(velocity, vorticity, dim=1))
        return self._project(product), velocity.abs().sum(1).amax()

    def _forced(self, state: Complex[Tensor, "batch c *modes"]) -> Complex[Tensor, "batch c *modes"]:
        if not self.shells:
            return state
        flat = state.flatten(2)
        chosen = flat[..., self._members]
        each = (chosen.real.square() + chosen.imag.square()).sum(1) * self._twice
        energy = each.new_zeros(len(each), len(self._goal)).index_add_(1, self._of, each)
        flat[..., self._members] = chosen * (self._goal / energy).sqrt()[:, self._of][:, None]
        return flat.view_as(state)


def sharp_filter(field: Float[Tensor, "..."], keep: int, axis: int) -> Float[Tensor, "..."]:
    """The waves along a periodic axis that ``keep`` points can carry, on ``keep`` points (the last one, Nyquist's, goes).

    Raises:
        ValueError: ``keep`` is odd, below 2 or more than the points there are.
    """
    points = field.shape[axis]
    if keep % 2 or not 2 <= keep <= points:
        raise ValueError(f"keep must be even and from 2 to the {points} points of the grid, got {keep}")
    waves = torch.fft.rfft(field, dim=axis, norm="forward").narrow(axis, 0, keep // 2 + 1).clone()
    waves.select(axis, keep // 2).zero_()
    seen: Tensor = torch.fft.irfft(waves, n=keep, dim=axis, norm="forward")
    return seen


def isotropic(
    trajectories: int,
    snapshots: int,
    *,
    grid: int = 32,
    keep: int = 16,
    interval: float = 0.25,
    seed: int,
    viscosity: float = 0.04,
    dt: float = 0.025,
    spinup: float = 10.0,
) -> Float[Tensor, "trajectories snapshots keep keep keep 3"]:
    """Velocities of forced isotropic turbulence, ``interval`` apart after ``spinup``, sharply filtered to ``keep`` points.

    Raises:
        ValueError: a count below 1, ``keep`` wider than ``grid``, an interval that is no multiple of ``dt``, or a
            ``dt`` that is too long for the flow.
    """
    solver = IsotropicFlow(grid, viscosity=viscosity, dt=dt)
    return _simulated("isotropic", solver, trajectories, snapshots, keep, interval, spinup, seed)


def kolmogorov(
    trajectories: int,
    snapshots: int,
    *,
    grid: int = 64,
    keep: int = 32,
    interval: float = 0.4,
    seed: int,
    viscosity: float = 0.005,
    drag: float = 0.1,
    dt: float = 0.016,
    spinup: float = 20.0,
) -> Float[Tensor, "trajectories snapshots keep keep 2"]:
    """Velocities of two-dimensional Kolmogorov flow, ``interval`` apart after ``spinup``, sharply filtered to ``keep``.

    Raises:
        ValueError: as :func:`isotropic`.
    """
    solver = KolmogorovFlow(grid, viscosity=viscosity, drag=drag, dt=dt)
    return _simulated("kolmogorov", solver, trajectories, snapshots, keep, interval, spinup, seed)


def check_step(dt: float, speed: float, limit: float) -> None:
    """Refuse a time step with which a flow of this speed would cross more than ``limit``.

    Raises:
        ValueError: it is too long, or the speed is not finite.
    """
    if not math.isfinite(speed):
        raise ValueError("velocity must be finite, got values that are not")
    if dt * speed > limit:
        raise ValueError(f"dt must be at most {limit / speed:.3g} for this flow and grid, got {dt}")


def steps_of(time: float, dt: float, name: str) -> int:
    """How many steps of ``dt`` a time is.

    Raises:
        ValueError: not a whole number of them, or none.
    """
    count = round(time / dt)
    if count < 1 or abs(count * dt - time) > 1e-6 * time:
        raise ValueError(f"{name} must be a positive multiple of dt = {dt}, got {time}")
    return count


def trajectory(
    step: Callable[[Tensor, int], Tensor],
    velocity: Float[Tensor, "batch *grid d"],
    snapshots: int,
    count: int,
    view: Callable[[Tensor], Tensor],
) -> Float[Tensor, "batch snapshots *kept d"]:
    """``view`` of the velocity and of what follows it, every ``count`` steps, as float32."""
    seen = [view(velocity).float()]
    for _ in range(snapshots - 1):
        velocity = step(velocity, count)
        seen.append(view(velocity).float())
    return torch.stack(seen, 1)


def _simulated(
    name: str,
    solver: PeriodicFlow,
    trajectories: int,
    snapshots: int,
    keep: int,
    interval: float,
    spinup: float,
    seed: int,
) -> Tensor:
    if trajectories < 1 or snapshots < 1:
        raise ValueError(f"trajectories and snapshots must be at least 1, got {trajectories} and {snapshots}")
    if keep % 2 or not 2 <= keep <= solver.grid:
        raise ValueError(f"keep must be even and from 2 to grid = {solver.grid}, got {keep}")
    count, warm = steps_of(interval, solver.dt, "interval"), steps_of(spinup, solver.dt, "spinup")
    batch = math.gcd(trajectories, BATCH)

    def view(velocity: Tensor) -> Tensor:
        for axis in range(1, solver.dims + 1):
            velocity = sharp_filter(velocity, keep, axis)
        return velocity

    def make(part: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * seed + part)
        start = solver.step(solver.initial(batch, generator), warm)
        return {"velocity": trajectory(solver.step, start, snapshots, count, view)}

    settings: dict[str, Any] = {
        "grid": solver.grid, "keep": keep, "viscosity": solver.viscosity, "drag": solver.drag, "dt": solver.dt,
        "snapshots": snapshots, "count": count, "warm": warm, "seed": seed, "batch": batch,
    }  # fmt: skip
    parts = trajectories // batch
    return load_or_make(name, make, parts=parts, settings=settings, code=[sys.modules[__name__]])["velocity"]
