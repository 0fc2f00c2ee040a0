import math

import pytest
import torch

from everyformer.lab.channel import wall_points
from everyformer.lab.flow_statistics import (
    correlation_time,
    energy_budget,
    energy_spectrum,
    law_of_the_wall,
    line_spectrum,
    mean_profile,
    relative_change,
    reynolds_stress,
    rms,
    total_stress,
    wall_units,
)

Y = wall_points(33)[0]


def points(count):
    return torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)


def waves_between_walls(mean, streamwise, wall_normal):
    """A channel of (2, 8, 33, 4): the mean, plus one wave along x whose u' and v' have these amplitudes over y."""
    phase = points(8)[:, None, None].cos()
    field = torch.zeros(2, 8, 33, 4, 3, dtype=torch.float64)
    field[..., 0] = mean[:, None] + streamwise[:, None] * phase
    field[..., 1] = -wall_normal[:, None] * phase
    field[1, ..., 2] = 0.4 * (1 - Y**2)[:, None] * points(4).sin()
    return field


def test_the_spectrum_puts_each_wave_in_its_shell_and_sums_to_the_energy():
    x, y = torch.meshgrid(points(16), points(16), indexing="ij")
    field = torch.stack([2 * torch.sin(3 * x + 4 * y), 0 * x + 3], -1)
    spectrum = energy_spectrum(field)
    expected = torch.zeros(9, dtype=torch.float64)
    expected[0], expected[5] = 4.5, 1.0
    torch.testing.assert_close(spectrum, expected)
    assert float(spectrum.sum()) == pytest.approx(float(field.square().sum(-1).mean() / 2))
    torch.testing.assert_close(
        energy_spectrum(torch.stack([field, 2 * field]).float()), 2.5 * expected, rtol=1e-5, atol=1e-6
    )


def test_the_spectrum_in_three_dimensions_rounds_lengths_to_shells():
    x, y, z = torch.meshgrid(points(8), points(8), points(8), indexing="ij")
    field = torch.stack([torch.sin(x + y + z), torch.sin(2 * x), 0 * x], -1)  # |k| = 1.73 and 2
    assert energy_spectrum(field).tolist() == pytest.approx([0, 0, 0.5, 0, 0], abs=1e-12)


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 9, 2), (5, 8, 33, 4, 3), (8, 8, 1)])
def test_the_spectrum_of_something_else_than_a_cube_is_refused(shape):
    with pytest.raises(ValueError, match=r"velocity must be \(..., \*grid, d\)"):
        energy_spectrum(torch.zeros(shape))


@pytest.mark.parametrize("count", [8, 9])
def test_a_spectrum_along_a_line_sums_to_half_of_the_mean_square(count):
    field = torch.randn(3, count, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = line_spectrum(field, 1)
    assert spectrum.shape == (count // 2 + 1, 2)
    torch.testing.assert_close(spectrum.sum(0), field.square().mean((0, 1, 2)) / 2)
    wave = 2 * torch.cos(3 * points(count))[:, None]
    assert line_spectrum(wave, 0)[:, 0].tolist() == pytest.approx([0, 0, 0, 1, 0], abs=1e-12)


def test_profiles_of_a_known_flow_are_found():
    mean, big, small = 1.5 * (1 - Y**2), 0.3 * (1 - Y**2), 0.2 * (1 - Y**2) ** 2 * Y
    field = waves_between_walls(mean, big, small)
    torch.testing.assert_close(mean_profile(field, Y), mean)
    torch.testing.assert_close(reynolds_stress(field, Y), big * small / 2)
    size = rms(field, Y)
    torch.testing.assert_close(size[:, 0], big / math.sqrt(2))
    torch.testing.assert_close(size[:, 1], small.abs() / math.sqrt(2))
    torch.testing.assert_close(size[:, 2], 0.4 * (1 - Y**2) / 2)
    stress = total_stress(field, Y, 0.1)
    torch.testing.assert_close(stress, big * small / 2 - 0.3 * Y, rtol=0, atol=1e-10)


def test_wall_units_come_from_the_friction_at_both_walls():
    field = waves_between_walls(1.5 * (1 - Y**2), 0 * Y, 0 * Y)
    units = wall_units(field, Y, 0.01)
    assert units.velocity == pytest.approx(math.sqrt(0.03))
    assert units.length == pytest.approx(0.01 / math.sqrt(0.03))
    assert units.reynolds == pytest.approx(math.sqrt(0.03) / 0.01)
    with pytest.raises(ValueError, match="viscosity must be positive, got 0"):
        wall_units(field, Y, 0)
    with pytest.raises(ValueError, match="velocity must have friction"):
        wall_units(torch.zeros(8, 33, 4, 3), Y, 0.01)


@pytest.mark.parametrize("statistic", [mean_profile, rms, reynolds_stress])
def test_statistics_between_walls_refuse_a_periodic_field_unless_told(statistic):
    field = torch.randn(2, 8, 33, 4, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"velocity must vanish at the walls.*is it a periodic field\?"):
        statistic(field, Y)
    assert statistic(field, Y, no_slip=False).isfinite().all()


def test_fields_and_points_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"velocity must be \(..., nx, ny, nz, 3\), got \(8, 33, 4, 2\)"):
        rms(torch.zeros(8, 33, 4, 2), Y)
    for wrong in (Y[:-1], Y.flip(0)):
        with pytest.raises(ValueError, match="y must hold the 33 wall-normal points"):
            mean_profile(torch.zeros(8, 33, 4, 3), wrong)


def test_the_law_of_the_wall_is_linear_at_the_wall_and_logarithmic_far_from_it():
    y = torch.tensor([0.0, 0.5, 1.0, 100.0, 300.0], dtype=torch.float64)
    mean = law_of_the_wall(y)
    assert mean[:3].tolist() == pytest.approx([0.0, 0.5, 1.0], abs=5e-3)
    assert mean[3:].tolist() == pytest.approx([math.log(100) / 0.41 + 5, math.log(300) / 0.41 + 5], rel=0.02)


def test_the_correlation_time_of_a_known_process_is_found():
    generator = torch.Generator().manual_seed(0)
    kick = torch.randn(400, 2000, generator=generator, dtype=torch.float64)
    memory = math.exp(-0.1)
    state = [kick[0]]
    for one in kick[1:]:
        state.append(memory * state[-1] + math.sqrt(1 - memory**2) * one)
    field = torch.stack(state)
    assert correlation_time(field, 0.1) == pytest.approx(1.0, rel=0.05)
    assert correlation_time(field + 5, 0.1) == math.inf
    assert correlation_time(field + 5, 0.1, mean=5.0) == pytest.approx(1.0, rel=0.05)


def test_a_frozen_field_is_seen_to_be_frozen():
    frozen = torch.randn(1, 8, 8, 2, generator=torch.Generator().manual_seed(0)).repeat(20, 1, 1, 1)
    assert correlation_time(frozen, 0.1) == math.inf
    assert relative_change(frozen) == 0
    assert relative_change(torch.tensor([[1.0, 0.0], [1.0, 0.5], [1.0, 0.5]])) == pytest.approx(0.25)


@pytest.mark.parametrize("measure", [relative_change, lambda one: correlation_time(one, 0.1)])
def test_time_needs_two_snapshots(measure):
    with pytest.raises(ValueError, match="velocity must hold at least two snapshots"):
        measure(torch.zeros(1, 4))


def test_the_energy_budget_of_a_decaying_and_driven_wave_closes():
    """u' = -nu k^2 u - drag u + f has an exact solution; k = 2."""
    time = torch.arange(21, dtype=torch.float64)[:, None, None] * 0.05
    wave = torch.sin(2 * points(8))[None, None, :].expand(1, 8, 8)
    rate = 0.05 * 4 + 0.3
    size = 0.4 / rate + (2 - 0.4 / rate) * torch.exp(-rate * time)
    field = torch.stack([size * wave, torch.zeros(21, 8, 8, dtype=torch.float64)], -1)
    force = torch.stack([0.4 * wave[0], 0 * wave[0]], -1)
    budget = energy_budget(field, 0.05, viscosity=0.05, force=force, drag=0.3)
    assert abs(budget.residual) < 1e-7
    assert budget.change == pytest.approx(float(size[-1] ** 2 - size[0] ** 2) / 4, rel=1e-9)
    assert budget.drag == pytest.approx(1.5 * budget.dissipation)
    pairs = energy_budget(torch.stack([field, field], 1), 0.05, viscosity=0.05, force=force, drag=0.3)
    assert pairs.dissipation == pytest.approx(budget.dissipation)
    with pytest.raises(ValueError, match="velocity must have an odd number of snapshots, at least 3, got 20"):
        energy_budget(field[:20], 0.05, viscosity=0.05)
    with pytest.raises(ValueError, match="interval must be positive"):
        energy_budget(field, 0.0, viscosity=0.05)
