"""Statistics of turbulent velocities: spectra, profiles between walls, wall units, and how a flow lives in time.

Velocities have their components last. Periodic boxes have sides of 2 pi, ``(..., *grid, d)``; channels are
``(..., nx, ny, nz, 3)`` with walls at the ends of ``y`` and components (streamwise, wall-normal, spanwise).
Means are over all leading axes and over the directions in which the flow is homogeneous. All is computed in float64.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor


def energy_spectrum(velocity: Float[Tensor, "... d"]) -> Float[Tensor, " shells"]:
    """Kinetic energy of the wave numbers around 0, 1, 2, ... in a periodic box; they sum to the energy per mass.

    Shell k holds k - 1/2 <= |k| < k + 1/2; the last one, half of the grid, is the largest that lies in the box whole.
    What lies in the corners beyond is left out.

    Raises:
        ValueError: the grid has not as many axes as the velocity has components, or has sides of different length.
    """
    dims = velocity.shape[-1]
    grid = velocity.shape[-dims - 1 : -1]
    if dims not in (2, 3) or velocity.ndim < dims + 1 or len(set(grid)) != 1:
        raise ValueError(f"velocity must be (..., *grid, d) with d = 2 or 3 equal sides, got {tuple(velocity.shape)}")
    axes = tuple(range(-dims - 1, -1))
    waves = torch.fft.fftn(velocity.double(), dim=axes, norm="forward")
    energy = (waves.real.square() + waves.imag.square()).sum(-1) / 2
    energy = energy.reshape(-1, *grid).mean(0)
    number = torch.fft.fftfreq(grid[0], 1 / grid[0], dtype=torch.float64, device=velocity.device)
    radius = torch.stack(torch.meshgrid(*[number] * dims, indexing="ij")).square().sum(0).sqrt()
    shell = radius.add(0.5).floor().long().flatten()
    return torch.bincount(shell, energy.flatten(), minlength=grid[0] // 2 + 1)[: grid[0] // 2 + 1]


def line_spectrum(velocity: Float[Tensor, "... d"], axis: int) -> Float[Tensor, "waves d"]:
    """Energy of each component in the waves 0, 1, 2, ... along one periodic axis, as of x or z in a channel.

    Summed over the waves it is half of the mean square.
    """
    waves: Tensor = torch.fft.rfft(velocity.double(), dim=axis, norm="forward").movedim(axis, -2)
    energy = waves.real.square() + waves.imag.square()
    energy[..., 0, :] /= 2
    if velocity.shape[axis] % 2 == 0:
        energy[..., -1, :] /= 2
    return energy.reshape(-1, *energy.shape[-2:]).mean(0)


def mean_profile(
    velocity: Float[Tensor, "... nx ny nz 3"], y: Float[Tensor, " ny"], *, no_slip: bool = True
) -> Float[Tensor, " ny"]:
    """Mean streamwise velocity over the wall-normal points.

    Args:
        velocity: of a channel.
        y: wall-normal points, from wall to wall, rising.
        no_slip: refuse a field that moves at the walls; False for predictions, which may.

    Raises:
        ValueError: shapes that do not fit, points that do not rise, or a field that no walls hold, as a periodic one.
    """
    return _between_walls(velocity, y, no_slip)[..., 0].mean((0, 1, 3))


def rms(
    velocity: Float[Tensor, "... nx ny nz 3"], y: Float[Tensor, " ny"], *, no_slip: bool = True
) -> Float[Tensor, "ny 3"]:
    """Root mean square of the fluctuations about the mean profile, of each component; as :func:`mean_profile`."""
    return _fluctuations(velocity, y, no_slip).square().mean((0, 1, 3)).sqrt()


def reynolds_stress(
    velocity: Float[Tensor, "... nx ny nz 3"], y: Float[Tensor, " ny"], *, no_slip: bool = True
) -> Float[Tensor, " ny"]:
    """Reynolds shear stress -<u'v'> per density, positive at the lower wall; as :func:`mean_profile`."""
    moved = _fluctuations(velocity, y, no_slip)
    return -(moved[..., 0] * moved[..., 1]).mean((0, 1, 3))


def total_stress(
    velocity: Float[Tensor, "... nx ny nz 3"], y: Float[Tensor, " ny"], viscosity: float
) -> Float[Tensor, " ny"]:
    """Shear stress -<u'v'> + viscosity dU/dy per density: a straight line over y once the flow is stationary."""
    return reynolds_stress(velocity, y) + viscosity * _slope(mean_profile(velocity, y), y)


@dataclasses.dataclass(frozen=True)
class WallUnits:
    """The scales of a flow near its walls, from the mean friction there."""

    velocity: float
    """Friction velocity, the root of wall stress over density."""
    length: float
    """Viscosity over friction velocity."""
    reynolds: float
    """Friction Reynolds number: the half-height in wall lengths."""


def wall_units(velocity: Float[Tensor, "... nx ny nz 3"], y: Float[Tensor, " ny"], viscosity: float) -> WallUnits:
    """Friction velocity, wall length and friction Reynolds number of a channel; as :func:`mean_profile`.

    The slope at a wall is that of the parabola through the three points next to it, so these should lie within the
    viscous layer.
    """
    if viscosity <= 0:
        raise ValueError(f"viscosity must be positive, got {viscosity}")
    slope = _slope(mean_profile(velocity, y), y)
    friction = math.sqrt(viscosity * abs(float(slope[0] - slope[-1])) / 2)
    if friction == 0:
        raise ValueError("velocity must have friction at the walls, got a mean profile without a slope there")
    length = viscosity / friction
    return WallUnits(friction, length, float(y[-1] - y[0]) / 2 / length)


def law_of_the_wall(y_plus: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Mean velocity in wall units over the distance from the wall in wall units, after Spalding (1961).

    With von Karman's constant 0.41 and intercept 5; one formula from the wall through the logarithmic layer.
    """
    kappa, intercept = 0.41, 5.0
    low, high = torch.zeros_like(y_plus.double()), y_plus.double()
    for _ in range(60):  # the distance rises with the velocity, and is never below it
        middle = (low + high) / 2
        power = kappa * middle
        rest = power.exp() - 1 - power - power.square() / 2 - power**3 / 6
        far = middle + math.exp(-kappa * intercept) * rest > y_plus
        low, high = torch.where(far, low, middle), torch.where(far, middle, high)
    return (low + high) / 2


def correlation_time(velocity: Float[Tensor, "time ..."], interval: float, *, mean: Tensor | float = 0.0) -> float:
    """Time after which velocities at fixed points have lost all but 1/e of their correlation; inf if they do not.

    Args:
        velocity: snapshots of one run, ``interval`` apart.
        interval: between snapshots; the result is in its units.
        mean: the mean flow, taken off first. Give that of the true flow, not of these snapshots: a frozen field is its
            own mean, and would have nothing left.

    Raises:
        ValueError: fewer than two snapshots, or an interval that is not positive.
    """
    moved = (_snapshots(velocity, interval) - mean).flatten(1)
    size = moved.norm(dim=1)
    before = 1.0
    for lag in range(1, len(moved)):
        pairs = (moved[:-lag] * moved[lag:]).sum() / (size[:-lag] * size[lag:]).sum().clamp(min=1e-300)
        now = float(pairs)
        if now <= 1 / math.e:
            return interval * (lag - 1 + (before - 1 / math.e) / (before - now))
        before = now
    return math.inf


def relative_change(velocity: Float[Tensor, "time ..."]) -> float:
    """Mean of |u(t + 1) - u(t)| / |u(t)| over the snapshots of one run: how alive it is from one to the next.

    Raises:
        ValueError: fewer than two snapshots.
    """
    fields = _snapshots(velocity, 1.0).flatten(1)
    return float(((fields[1:] - fields[:-1]).norm(dim=1) / fields[:-1].norm(dim=1)).mean())


@dataclasses.dataclass(frozen=True)
class EnergyBudget:
    """Mean rates per mass between the first and the last snapshot: change = supply - dissipation - drag + residual."""

    change: float
    supply: float
    dissipation: float
    drag: float
    residual: float


def energy_budget(
    velocity: Float[Tensor, "time ... d"],
    interval: float,
    *,
    viscosity: float,
    force: Float[Tensor, "... d"] | None = None,
    drag: float = 0.0,
) -> EnergyBudget:
    """Where the energy of a flow in a periodic box goes, over snapshots of one run so close that Simpson's rule holds.

    Args:
        velocity: (time, ..., *grid, d), an odd number of snapshots, at least 3, on a grid that resolves the flow.
        interval: between snapshots.
        viscosity: kinematic.
        force: body force per mass on the same grid.
        drag: linear friction, a rate.

    Raises:
        ValueError: an even number of snapshots or fewer than 3.
    """
    fields = _snapshots(velocity, interval)
    steps = len(fields) - 1
    if steps % 2:
        raise ValueError(f"velocity must have an odd number of snapshots, at least 3, got {len(fields)}")
    dims, side = fields.shape[-1], fields.shape[-2]
    waves = torch.fft.fftn(fields, dim=tuple(range(-dims - 1, -1)), norm="forward")
    number = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64, device=fields.device)
    square = torch.stack(torch.meshgrid(*[number] * dims, indexing="ij")).square().sum(0)[..., None]
    weights = torch.ones(steps + 1, dtype=torch.float64, device=fields.device)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    weights /= 3 * steps

    def over_time(rates: Tensor) -> float:
        return float((weights * rates).sum())

    energy = fields.square().sum(-1).flatten(1).mean(1) / 2
    change = float(energy[-1] - energy[0]) / (steps * interval)
    loss = over_time(
        viscosity * (square * waves.abs().square()).sum(tuple(range(-dims - 1, 0))).reshape(steps + 1, -1).mean(1)
    )
    supply = 0.0 if force is None else over_time((fields * force).sum(-1).flatten(1).mean(1))
    friction = over_time(2 * drag * energy)
    return EnergyBudget(change, supply, loss, friction, change - supply + loss + friction)


def _snapshots(velocity: Tensor, interval: float) -> Tensor:
    if velocity.ndim < 2 or len(velocity) < 2:
        raise ValueError(f"velocity must hold at least two snapshots along its first axis, got {tuple(velocity.shape)}")
    if interval <= 0:
        raise ValueError(f"interval must be positive, got {interval}")
    return velocity.double()


def _between_walls(velocity: Tensor, y: Tensor, no_slip: bool) -> Float[Tensor, "batch nx ny nz 3"]:
    if velocity.ndim < 4 or velocity.shape[-1] != 3:
        raise ValueError(f"velocity must be (..., nx, ny, nz, 3), got {tuple(velocity.shape)}")
    if y.shape != velocity.shape[-3:-2] or len(y) < 3 or not bool((y[1:] > y[:-1]).all()):
        raise ValueError(
            f"y must hold the {velocity.shape[-3]} wall-normal points, at least 3, rising from wall to wall, "
            f"got the shape {tuple(y.shape)}"
        )
    fields = velocity.double().reshape(-1, *velocity.shape[-4:])
    at_walls, everywhere = fields[:, :, [0, -1]].square().mean().sqrt(), fields.square().mean().sqrt()
    if no_slip and float(at_walls) > 0.05 * float(everywhere):
        raise ValueError(
            f"velocity must vanish at the walls, the ends of y, got {float(at_walls):.3g} there against "
            f"{float(everywhere):.3g} in all: is it a periodic field?"
        )
    return fields


def _fluctuations(velocity: Tensor, y: Tensor, no_slip: bool) -> Float[Tensor, "batch nx ny nz 3"]:
    fields = _between_walls(velocity, y, no_slip)
    return fields - fields.mean((0, 1, 3), keepdim=True)


def _slope(profile: Float[Tensor, " ny"], y: Float[Tensor, " ny"]) -> Float[Tensor, " ny"]:
    (slope,) = torch.gradient(profile, spacing=(y.to(profile),), edge_order=2)
    return slope
