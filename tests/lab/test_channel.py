import math

import pytest
import torch

from everyformer.lab import data
from everyformer.lab.channel import ChannelFlow, channel, wall_points
from everyformer.lab.flow_statistics import total_stress, wall_units

DOUBLE = torch.float64
GRID = (8, 25, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path)
    return tmp_path


def flow(grid=GRID, reynolds=100.0, dt=0.02, dtype=DOUBLE, **options):
    return ChannelFlow(grid, reynolds=reynolds, dt=dt, dtype=dtype, **options)


def disturbed(solver, batch=1, seed=0):
    return solver.step(solver.initial(batch, torch.Generator().manual_seed(seed)), 2)


def parabola(solver):
    field = torch.zeros(1, *solver.grid, 3, dtype=solver.dtype)
    field[..., 0] = (1.5 * (1 - solver.y**2))[:, None]
    return field


def along(field, axis, length):
    count = field.shape[axis]
    waves = torch.fft.fftfreq(count, length / count, dtype=field.dtype) * 2 * math.pi
    shape = [1] * field.ndim
    shape[axis] = -1
    return torch.fft.ifft(1j * waves.view(shape) * torch.fft.fft(field, dim=axis), dim=axis).real


def divergence(solver, field):
    rise = torch.einsum("ij,bxjz->bxiz", wall_points(solver.grid[1])[2], field[..., 1])
    return along(field[..., 0], 1, solver.lengths[0]) + rise + along(field[..., 2], 3, solver.lengths[1])


def test_wall_points_differentiate_and_integrate_polynomials_exactly():
    y, weights, slope = wall_points(12)
    assert y[[0, -1]].tolist() == [-1.0, 1.0]
    assert (y[1:] > y[:-1]).all()
    for power in range(12):
        value = y**power
        torch.testing.assert_close(slope @ value, power * y ** max(power - 1, 0), rtol=0, atol=1e-11)
    for power in range(22):
        assert float(weights @ y**power) == pytest.approx(0 if power % 2 else 2 / (power + 1), abs=1e-13)


def test_poiseuille_flow_stays_as_it_is_and_its_friction_is_known():
    solver = flow()
    ahead = solver.step(parabola(solver), 50)
    torch.testing.assert_close(ahead, parabola(solver), rtol=0, atol=1e-12)
    budget = solver.budget(ahead)
    assert [float(v) for v in (budget.energy, budget.dissipation, budget.power)] == pytest.approx([0.6, 0.03, 0.03])
    units = wall_units(ahead, solver.y, solver.viscosity)
    assert units.reynolds == pytest.approx(math.sqrt(300.0))
    assert units.velocity == pytest.approx(math.sqrt(0.03))


def test_a_flow_of_another_mass_flux_is_brought_to_the_parabola():
    solver = flow(reynolds=5.0, dt=0.1)
    plug = parabola(solver)
    plug[..., 0] = 0.7
    torch.testing.assert_close(solver.step(plug, 120), parabola(solver), rtol=0, atol=1e-9)


def test_spanwise_flow_under_the_main_one_decays_as_it_should():
    solver = flow(reynolds=20.0, dt=0.01)
    start = parabola(solver)
    start[..., 2] = 0.3 * torch.cos(math.pi / 2 * solver.y)[:, None]
    ahead = solver.step(start, 100)
    expected = start[..., 2] * math.exp(-((math.pi / 2) ** 2) / 20)
    torch.testing.assert_close(ahead[..., 2], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ahead[..., 0], start[..., 0], rtol=0, atol=1e-12)


def test_the_unstable_wave_of_poiseuille_flow_grows_at_the_rate_of_orszag():
    """Reynolds number 10000 by the speed at the centre, wave number 1: c = 0.23752649 + 0.00373967 i (Orszag 1971)."""
    solver = flow((8, 49, 8), reynolds=10000 / 1.5, lengths=(2 * math.pi, 1.0), dt=0.01)
    base = solver._enter(parabola(solver))
    functions = solver.grid[1] - 4  # wall-normal functions of a wave
    wave, mirror = solver._columns, -solver._columns  # the waves 1 and -1 along x that are uniform along z
    small = torch.zeros(*base.shape[:2], functions, dtype=base.dtype)
    small[wave, :functions] = small[mirror, :functions] = torch.eye(functions, dtype=base.dtype)
    change = (solver._force(base + small)[0] - solver._force(base - small)[0]) / 2  # exact: the force is quadratic
    friction = torch.diag(solver._fading[wave, :functions, 0])
    rates = torch.linalg.eigvals(change[wave, :functions] - friction)
    fastest = rates[rates.real.argmax()]
    assert float(fastest.real) == pytest.approx(1.5 * 0.00373967, rel=1e-4)
    assert float(fastest.imag) == pytest.approx(-1.5 * 0.23752649, rel=1e-5)


def test_velocities_are_free_of_divergence_and_zero_at_the_walls():
    solver = flow()
    start = solver.initial(2, torch.Generator().manual_seed(0))
    ahead = solver.step(start, 10)
    for field in (start, ahead):
        assert divergence(solver, field).abs().max() < 1e-10
        assert field[:, :, [0, -1]].abs().max() < 1e-12
    bulk = (ahead[..., 0].mean((1, 3)) * solver.weights).sum(1) / 2
    assert bulk.tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_what_is_not_free_of_divergence_is_dropped_and_the_rest_kept():
    solver = flow()
    clean = disturbed(solver)
    x = torch.arange(8, dtype=DOUBLE) / 8 * 2 * math.pi
    pressure = (torch.cos(x)[:, None, None] * torch.cos(x)[None, None] * (solver.y**3 - solver.y)[:, None])[None]
    slope = torch.einsum("ij,bxjz->bxiz", wall_points(25)[2], pressure)
    gradient = [along(pressure, 1, solver.lengths[0]), slope, along(pressure, 3, solver.lengths[1])]
    polluted = clean + torch.stack(gradient, -1)
    torch.testing.assert_close(solver.step(polluted, 1), solver.step(clean, 1), rtol=0, atol=1e-12)


def test_the_energy_adds_up_at_any_instant():
    solver = flow(dt=0.01)
    fields = [disturbed(solver, batch=2)]
    for _ in range(4):
        fields.append(solver.step(fields[-1]))
    energy = [solver.budget(field).energy for field in fields]
    rate = (energy[0] - 8 * energy[1] + 8 * energy[3] - energy[4]) / 0.12
    budget = solver.budget(fields[2])
    residual = (rate - budget.power + budget.dissipation).abs() / budget.dissipation
    assert residual.max() < 1e-4
    volume = (fields[2].square().sum(-1) / 2 * solver.weights[:, None] / 2).mean((1, 3)).sum(1)
    torch.testing.assert_close(budget.energy, volume)


def test_the_nonlinear_terms_neither_make_nor_lose_energy():
    solver = flow(reynolds=1e9, dt=0.002)
    start = disturbed(solver)
    before, after = (float(solver.budget(field).energy) for field in (start, solver.step(start, 20)))
    assert before > 0.5
    assert abs(after / before - 1) < 1e-6


def test_the_mean_momentum_adds_up_at_any_instant():
    """dU/dt is the slope of the total stress, and the pressure gradient: the stress is straight once U stands still."""
    solver = flow((12, 33, 12), dt=0.005)
    fields = [solver.step(disturbed(solver), 40)]
    for _ in range(2):
        fields.append(solver.step(fields[-1]))
    low, _, high = (field[..., 0].mean((0, 1, 3)) for field in fields)
    slope = wall_points(33)[2]
    mean = fields[1].mean((1, 3), keepdim=True)
    moved = fields[1] - mean
    stress = -(moved[..., 0] * moved[..., 1]).mean((0, 1, 3)) + solver.viscosity * slope @ mean[0, 0, :, 0, 0]
    expected = slope @ stress + float(solver.budget(fields[1]).power)
    scale = (slope @ stress).abs().max()
    torch.testing.assert_close(((high - low) / 0.01)[1:-1], expected[1:-1], rtol=0, atol=float(1e-2 * scale))
    near = total_stress(fields[1], solver.y, solver.viscosity)
    torch.testing.assert_close(near, stress, rtol=0, atol=float(0.02 * stress.abs().max()))


def test_the_error_falls_at_least_with_the_square_of_the_time_step():
    start = disturbed(flow())
    ends = [flow(dt=0.4 / count).step(start, count) for count in (20, 40, 80)]
    assert math.log2((ends[0] - ends[1]).norm() / (ends[1] - ends[2]).norm()) > 1.9


def test_single_precision_gives_the_same_flow():
    start = disturbed(flow())
    ahead = flow(dtype=torch.float32).step(start.float(), 20)
    torch.testing.assert_close(ahead.double(), flow().step(start, 20), rtol=0, atol=2e-5)


def test_a_time_step_that_is_too_long_is_refused_with_the_longest():
    start = disturbed(flow())
    with pytest.raises(ValueError, match="dt must be at most") as caught:
        flow(dt=1.0).step(start)
    longest = float(str(caught.value).split("at most ")[1].split(" ")[0])
    assert 0.02 < longest < 1.0
    assert flow(dt=0.99 * longest).step(start).isfinite().all()
    with pytest.raises(ValueError, match="velocity must be finite"):
        flow().step(start * math.nan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": (7, 25, 8)}, "grid must be even and at least 8 along x and z"),
        ({"grid": (8, 8, 8)}, "at least 9 along y"),
        ({"reynolds": 0.0}, "reynolds, dt and lengths must be positive"),
        ({"lengths": (1.0, 0.0)}, "reynolds, dt and lengths must be positive"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        flow(**arguments)


def test_velocities_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"velocity must have the shape \(batch, \*\(8, 25, 8, 3\)\)"):
        flow().step(torch.zeros(1, 8, 8, 25, 3, dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"velocity must be torch\.float64"):
        flow().budget(torch.zeros(1, 8, 25, 8, 3))
    with pytest.raises(ValueError, match="count must be at least 3"):
        wall_points(2)


def test_data_sets_have_the_shapes_they_promise_and_come_from_the_seed(cache):
    small = {"grid": (8, 17, 8), "keep": (4, 9, 6), "interval": 0.08, "spinup": 0.4, "seed": 900}
    velocity, y = channel(3, 2, **small)
    assert velocity.shape == (3, 2, 4, 9, 6, 3)
    assert velocity.dtype == torch.float32
    assert y.shape == (9,)
    assert y[[0, -1]].tolist() == [-1.0, 1.0]
    assert velocity[..., [0, -1], :, :].abs().max() < 1e-6
    assert (velocity[:, 1] - velocity[:, 0]).norm() > 0.01
    for path in (cache / "simulated").rglob("*.safetensors"):
        path.unlink()
    torch.testing.assert_close(channel(3, 2, **small)[0], velocity, rtol=0, atol=1e-6)
    assert not torch.allclose(channel(3, 2, **{**small, "seed": 901})[0], velocity, atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": (10, 9, 4)}, "keep must be even and at most"),
        ({"keep": (4, 9, 5)}, "keep must be even and at most"),
        ({"keep": (4, 8, 4)}, "keep must divide the 16 steps along y, as 9 does, got 8"),
        ({"keep": (4, 33, 4)}, "keep must divide the 16 steps along y"),
        ({"interval": 0.05}, "interval must be a positive multiple of dt"),
        ({"snapshots": 0}, "trajectories and snapshots must be at least 1, got 1 and 0"),
    ],
)
def test_data_sets_that_cannot_be_made_are_refused(arguments, message):
    settings = {"trajectories": 1, "snapshots": 2, "grid": (8, 17, 8), "keep": (4, 9, 4), "interval": 0.4, "seed": 0}
    with pytest.raises(ValueError, match=message):
        channel(**{**settings, **arguments})
