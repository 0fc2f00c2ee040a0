import math

import pytest
import torch

from everyformer.catalog import Job
from everyformer.lab.bench import run_cases
from everyformer.lab.measure import count_parameters
from everyformer.papers.ifactformer import bench, claim, study
from everyformer.papers.ifactformer.rivals import FNO, IFNO

CLAIMS = ("stability", "one_step", "parallel", "channel", "speed")


@pytest.fixture(scope="module", autouse=True)
def _fresh(cache):
    study.data.cache_clear()
    yield
    study.data.cache_clear()


@pytest.fixture
def job(tmp_path):
    return Job("smoke", 0, "cpu", tmp_path)


@pytest.mark.parametrize("name", CLAIMS)
def test_smoke_runs_give_figures(name, job):
    found = getattr(claim, name)(job)
    assert min(found.method, found.baseline) > 0
    assert all(math.isfinite(value) for value in found.extras.values())
    assert found.series


def test_models_are_trained_once_and_by_seed(job, tmp_path, monkeypatch):
    first = study.forecaster(job, "kolmogorov", study.OURS)
    other = study.forecaster(Job("smoke", 1, "cpu", tmp_path), "kolmogorov", study.OURS)
    weight = first.network.blocks[0].mix.weight
    assert not torch.equal(weight, other.network.blocks[0].mix.weight)
    monkeypatch.setattr(study, "_fit", None)  # no training any more
    for name in study.MODELS:
        study.forecaster(job, "kolmogorov", name)
    assert torch.equal(study.forecaster(job, "kolmogorov", study.OURS).network.blocks[0].mix.weight, weight)


def test_the_rate_is_the_one_whose_trial_went_best(job, monkeypatch):
    tried = []

    def fit(job, where, name, made, steps, rate, folder):
        tried.append((steps, rate))
        for parameter in made.parameters():
            parameter.data.fill_(rate)

    monkeypatch.setattr(study, "_fit", fit)
    monkeypatch.setattr(study, "one_step", lambda net, *_: abs(next(net.parameters()).flatten()[0].item() - 2e-3))
    monkeypatch.setattr(study, "load_or_train", lambda made, fit, **_: fit(job.folder))
    monkeypatch.setattr(study, "data", lambda where, scale, own=study.data: own(where, "smoke"))
    monkeypatch.setitem(study.SIZES["kolmogorov"], "cpu", study.SIZES["kolmogorov"]["smoke"])
    study.forecaster(Job("cpu", 0, "cpu", job.folder), "kolmogorov", "IFNO")
    assert [rate for _, rate in tried] == [*study.RATES, 2e-3]
    assert [steps for steps, _ in tried] == [1, 1, 1, 4]


@pytest.mark.parametrize("where", ["kolmogorov", "channel"])
def test_models_have_about_as_many_parameters(where):
    size = study.SIZES[where]["cpu"]
    channels = len(size.modes)
    counts = [
        sum(p.numel() * (2 if p.is_complex() else 1) for p in study.network(size, name, channels).parameters())
        for name in study.MODELS
    ]
    assert max(counts) < 1.2 * min(counts), counts


@pytest.mark.parametrize("grid", [(8, 10), (6, 8, 6)])
def test_rivals_take_and_give_fields(grid):
    u = torch.randn(2, 1, *grid, 3)
    for model in (
        FNO(3, modes=(4,) * len(grid), width=4, layers=2),
        IFNO(3, modes=(4,) * len(grid), width=4, iterations=3),
    ):
        assert model(u).shape == (2, *grid, 3)
        assert all(isinstance(tensor, torch.Tensor) for tensor in model.state_dict().values())
        model.load_state_dict(model.state_dict())


def test_ifno_iterates_one_layer_by_equal_parts():
    few, many = (IFNO(2, modes=(4, 4), width=4, iterations=count) for count in (2, 64))
    many.load_state_dict(few.state_dict())
    assert count_parameters(few) == count_parameters(many)
    more = IFNO(2, modes=(4, 4), width=4, iterations=128)
    more.load_state_dict(few.state_dict())
    u = torch.randn(1, 1, 8, 8, 2)
    close, far = (many(u) - more(u)).norm(), (few(u) - more(u)).norm()
    assert close < 0.1 * far  # towards the flow of a differential equation


def waves(count, speed):
    """Trajectories of a wave that travels, its place random."""
    where, when = torch.arange(16) * (2 * math.pi / 16), torch.arange(count)
    phase = torch.rand(3, 1, 1) * 6 + speed * when[:, None] + where
    velocity = torch.stack([torch.zeros_like(phase), phase.sin()], -1)
    return velocity[:, :, :, None].expand(-1, -1, -1, 16, -1)


def test_a_rollout_lives_only_if_it_moves_on_as_the_flow_does():
    truth = waves(80, 0.4)
    assert study.life(waves(80, 0.4), truth, 1.0, 0.2).alive
    frozen = truth[:, :1].expand_as(truth)
    assert not study.life(frozen, truth, 1.0, 0.2).alive
    assert study.life(frozen, truth, 1.0, 0.2).change == 0
    assert not study.life(waves(80, 1.3), truth, 1.0, 0.2).alive  # too fast
    assert not study.life(truth, truth, 1.0, 0.6).alive  # its model has not learned the flow
    assert not study.life(truth[:, :40], truth, 1.0, 0.2).alive  # it burst
    assert not study.life(torch.zeros_like(truth), truth, 1.0, 0.2).alive


def test_a_rollout_that_bursts_ends_there():
    truth = waves(20, 0.4)
    assert study.rolled(lambda window: window[:, -1] * 10, truth).shape[1] == 3
    assert study.rolled(study.unchanged, truth).shape == truth.shape
    blown = {name: study.rolled(lambda window: window[:, -1] * 1e9, truth) for name in study.MODELS}
    assert list(claim._pulse(truth, blown, 0.1).lines) == ["truth"]
    assert claim._film(truth, blown, 9).grid


def test_rollouts_that_do_not_live_count_as_failed():
    alive, dead = study.Life(0.2, 1.0, 1.0, 1.0, complete=True), study.Life(0.2, 0.0, 9.0, 1.0, complete=True)
    lives = dict(zip(study.MODELS, (alive, dead, alive, alive), strict=True))
    scores = claim._scores(dict(zip(study.MODELS, (0.1, 0.1, 0.2, 7.0), strict=True)), lives)
    assert list(scores.values()) == [0.1, 1.0, 0.2, 1.0]
    assert claim._best(scores) == 0.2


def test_vorticity_of_a_wave():
    points = torch.arange(16) * (2 * math.pi / 16)
    x, y = torch.meshgrid(points, points, indexing="ij")
    velocity = torch.stack([(2 * y).sin(), (3 * x).cos()], -1)
    expected = -3 * (3 * x).sin() - 2 * (2 * y).cos()
    torch.testing.assert_close(claim.vorticity(velocity), expected, rtol=1e-4, atol=1e-4)


def test_the_plan_is_the_released_size():
    plan = claim.plan()
    assert plan.parameters == 1_163_187
    # Forward 85 GFLOP and backward twice as much, five fields.
    assert plan.flops == pytest.approx(5 * 3 * 85e9, rel=0.3)


def test_the_bench_runs():
    rows = run_cases(bench.cases(quick=True, device="cpu"), rounds=1, device="cpu")
    assert [row.name for row in rows] == ["one snapshot of a channel ahead", "training step", "x 1 as long",
                                          "x 2 as long"]  # fmt: skip
    assert "attention between all points" in rows[2].ratios
