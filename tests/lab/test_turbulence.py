import math

import pytest
import torch

from everyformer.lab import data
from everyformer.lab.flow_statistics import energy_budget, energy_spectrum
from everyformer.lab.turbulence import IsotropicFlow, KolmogorovFlow, isotropic, kolmogorov, sharp_filter

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path)
    return tmp_path


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def coordinates(grid, dims):
    points = torch.arange(grid, dtype=DOUBLE) * (2 * math.pi / grid)
    return torch.meshgrid(*[points] * dims, indexing="ij")


def divergence(velocity):
    dims = velocity.shape[-1]
    grid = velocity.shape[1]
    waves = torch.fft.fftn(velocity, dim=tuple(range(1, dims + 1)), norm="forward")
    number = torch.fft.fftfreq(grid, 1 / grid, dtype=velocity.dtype)
    wave = torch.stack(torch.meshgrid(*[number] * dims, indexing="ij"), -1)
    return torch.fft.ifftn((1j * wave * waves).sum(-1), dim=tuple(range(1, dims + 1)), norm="forward").abs().max()


@pytest.mark.parametrize(("drag", "rate"), [(0.0, 0.36), (0.1, 0.46)])
def test_vortices_of_taylor_and_green_decay_as_they_should(drag, rate):
    x, y = coordinates(32, 2)
    start = torch.stack([torch.sin(3 * x) * torch.cos(3 * y), -torch.cos(3 * x) * torch.sin(3 * y)], -1)[None]
    solver = KolmogorovFlow(32, viscosity=0.02, dt=0.02, forcing=0.0, drag=drag, dtype=DOUBLE)
    torch.testing.assert_close(solver.step(start, 50), start * math.exp(-rate), rtol=0, atol=1e-13)


def test_from_rest_the_force_sets_up_the_laminar_flow():
    solver = KolmogorovFlow(16, viscosity=0.1, dt=0.05, drag=0.2, dtype=DOUBLE)
    ahead = solver.step(torch.zeros(1, 16, 16, 2, dtype=DOUBLE), 40)
    rate = 0.1 * 4**2 + 0.2
    torch.testing.assert_close(ahead[0], solver.force * (1 - math.exp(-2 * rate)) / rate, rtol=0, atol=1e-6)


def test_a_flow_along_its_own_vorticity_decays_as_it_should():
    x, y, z = coordinates(16, 3)
    start = torch.stack([z.sin() + y.cos(), x.sin() + z.cos(), y.sin() + x.cos()], -1)[None]
    solver = IsotropicFlow(16, viscosity=0.1, dt=0.02, shells=(), dtype=DOUBLE)
    torch.testing.assert_close(solver.step(start, 20), start * math.exp(-0.1 * 0.4), rtol=0, atol=1e-13)


def test_in_three_dimensions_a_plane_flow_is_that_of_the_plane_solver():
    plane = KolmogorovFlow(16, viscosity=0.05, dt=0.02, forcing=0.0, drag=0.0, dtype=DOUBLE)
    box = IsotropicFlow(16, viscosity=0.05, dt=0.02, shells=(), dtype=DOUBLE)
    flat = plane.initial(2, seeded())
    solid = torch.cat([flat, torch.zeros_like(flat[..., :1])], -1)[:, :, :, None].repeat(1, 1, 1, 16, 1)
    ahead, expected = box.step(solid, 20), plane.step(flat, 20)
    assert (expected - flat).norm() > 0.1 * flat.norm()
    torch.testing.assert_close(ahead[..., :2], expected[:, :, :, None].expand(-1, -1, -1, 16, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", [KolmogorovFlow(32, dtype=DOUBLE), IsotropicFlow(16, dtype=DOUBLE)])
def test_velocities_are_free_of_divergence_and_real(solver):
    start = solver.initial(2, seeded())
    ahead = solver.step(start, 20)
    assert divergence(start) < 1e-10
    assert divergence(ahead) < 1e-10
    assert not torch.allclose(ahead, start, atol=0.1)
    assert ahead.shape == start.shape == (2, *[solver.grid] * solver.dims, solver.dims)


@pytest.mark.parametrize("kind", [KolmogorovFlow, IsotropicFlow])
def test_the_error_falls_with_the_fourth_power_of_the_time_step(kind):
    still = {"forcing": 1.0} if kind is KolmogorovFlow else {"shells": ()}
    start = kind(16, dt=0.01, dtype=DOUBLE, **still).initial(1, seeded())
    ends = [kind(16, dt=0.16 / n, dtype=DOUBLE, **still).step(start, n) for n in (4, 8, 16)]
    gain = (ends[0] - ends[1]).norm() / (ends[1] - ends[2]).norm()
    assert 3.7 < math.log2(gain) < 4.4


def test_the_energy_of_a_driven_plane_flow_adds_up():
    solver = KolmogorovFlow(48, viscosity=0.01, dt=0.01, dtype=DOUBLE)
    state = [solver.step(solver.initial(2, seeded()), 300)]
    for _ in range(10):
        state.append(solver.step(state[-1]))
    budget = energy_budget(torch.stack(state), 0.01, viscosity=0.01, force=solver.force, drag=0.1)
    assert min(budget.supply, budget.dissipation, budget.drag) > 0.02
    assert abs(budget.residual) < 1e-6 * budget.dissipation


def test_the_energy_of_a_decaying_flow_adds_up():
    solver = IsotropicFlow(16, viscosity=0.05, dt=0.02, shells=(), dtype=DOUBLE)
    state = [solver.initial(2, seeded())]
    for _ in range(10):
        state.append(solver.step(state[-1]))
    budget = energy_budget(torch.stack(state), 0.02, viscosity=0.05)
    assert budget.change < -0.05
    assert abs(budget.residual) < 1e-6 * budget.dissipation


def test_forcing_holds_the_energy_of_the_large_waves_through_a_long_run():
    solver = IsotropicFlow(16, viscosity=0.1, shells=(1.0, 0.3))
    ahead = solver.step(solver.initial(2, seeded()), 120)
    for one in ahead:
        spectrum = energy_spectrum(one)
        assert spectrum[1:3].tolist() == pytest.approx([1.0, 0.3], rel=1e-4)
        assert 0.02 < spectrum[3] < 0.3
        assert spectrum[3] > spectrum[4] > spectrum[5]


def test_runs_of_a_batch_do_not_touch_each_other():
    solver = IsotropicFlow(16, dtype=DOUBLE)
    start = solver.initial(2, seeded())
    torch.testing.assert_close(solver.step(start, 5)[1:], solver.step(start[1:], 5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [KolmogorovFlow, IsotropicFlow])
def test_a_time_step_that_is_too_long_is_refused_with_the_longest(kind):
    start = 4 * kind(16, dt=0.1).initial(1, seeded())
    with pytest.raises(ValueError, match="dt must be at most") as caught:
        kind(16, dt=0.5).step(start)
    longest = float(str(caught.value).split("at most ")[1].split(" ")[0])
    assert 0.01 < longest < 0.5
    assert kind(16, dt=0.99 * longest).step(start).isfinite().all()
    with pytest.raises(ValueError, match="velocity must be finite"):
        kind(16).step(start * math.nan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": 15}, "grid must be even and at least 8, got 15"),
        ({"grid": 6}, "grid must be even and at least 8, got 6"),
        ({"viscosity": 0.0}, "viscosity and dt must be positive"),
        ({"dt": -1.0}, "viscosity and dt must be positive"),
        ({"dtype": torch.bfloat16}, "dtype must be torch.float32 or torch.float64"),
    ],
)
@pytest.mark.parametrize("kind", [KolmogorovFlow, IsotropicFlow])
def test_settings_that_make_no_sense_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"grid": 16, **arguments})


def test_forcing_that_the_grid_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="wavenumber must be 1 to 5 on this grid, got 6"):
        KolmogorovFlow(16, wavenumber=6)
    with pytest.raises(ValueError, match="shells must be positive"):
        IsotropicFlow(16, shells=(1.0, 0.0))


def test_velocities_that_do_not_fit_are_refused():
    solver = KolmogorovFlow(16)
    with pytest.raises(ValueError, match=r"velocity must have the shape \(batch, \*\(16, 16, 2\)\)"):
        solver.step(torch.zeros(1, 2, 16, 16))
    with pytest.raises(ValueError, match=r"velocity must be torch\.float32"):
        solver.step(torch.zeros(1, 16, 16, 2, dtype=DOUBLE))


def test_the_filter_keeps_large_waves_as_they_are_and_drops_the_others():
    x, y = coordinates(32, 2)
    small, _ = coordinates(16, 2)
    field = torch.sin(3 * x) + torch.cos(7 * x) + torch.sin(8 * x) + torch.cos(8 * x) + torch.sin(11 * x) + 0 * y
    seen = sharp_filter(field, 16, 0)
    assert seen.shape == (16, 32)
    torch.testing.assert_close(seen[:, 0], torch.sin(3 * small[:, 0]) + torch.cos(7 * small[:, 0]), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="keep must be even and from 2 to the 32 points of the grid, got 34"):
        sharp_filter(field, 34, 0)


def test_data_sets_have_the_shapes_they_promise_and_come_from_the_seed(cache):
    small = {"grid": 16, "keep": 8, "interval": 0.4, "spinup": 0.4}
    plane = kolmogorov(3, 4, seed=900, **small)
    solid = isotropic(2, 3, seed=900, **small)
    assert plane.shape == (3, 4, 8, 8, 2)
    assert solid.shape == (2, 3, 8, 8, 8, 3)
    assert plane.dtype == solid.dtype == torch.float32
    assert len({float(one[0].sum()) for one in plane.abs()}) == 3
    assert (plane[:, 1] - plane[:, 0]).norm() > 0.01
    for path in (cache / "simulated").rglob("*.safetensors"):
        path.unlink()
    torch.testing.assert_close(kolmogorov(3, 4, seed=900, **small), plane, rtol=0, atol=1e-6)
    assert not torch.allclose(kolmogorov(3, 4, seed=901, **small), plane, atol=0.1)


def test_snapshots_are_as_far_apart_as_asked():
    fine = kolmogorov(1, 5, grid=16, keep=16, interval=0.016, spinup=0.16, seed=900)
    wide = kolmogorov(1, 3, grid=16, keep=16, interval=0.032, spinup=0.16, seed=900)
    torch.testing.assert_close(fine[:, ::2], wide, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [kolmogorov, isotropic])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 32}, "keep must be even and from 2 to grid = 16, got 32"),
        ({"keep": 7}, "keep must be even"),
        ({"interval": 0.0301}, "interval must be a positive multiple of dt"),
        ({"spinup": 0.0}, "spinup must be a positive multiple of dt"),
        ({"trajectories": 0}, "trajectories and snapshots must be at least 1, got 0 and 2"),
    ],
)
def test_data_sets_that_cannot_be_made_are_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**{"trajectories": 1, "snapshots": 2, "grid": 16, "keep": 8, "seed": 0, **arguments})
