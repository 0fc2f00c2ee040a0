import dataclasses

import pytest
import torch

from everyformer.catalog import Job
from everyformer.lab.measure import count_parameters
from everyformer.papers.predformer import bench, claim, study
from everyformer.papers.predformer.model import ARRANGEMENTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predformer")


@pytest.fixture(autouse=True)
def _cache(folder, monkeypatch):
    monkeypatch.setattr("everyformer.lab.data.cache", lambda: folder)


def job(folder, seed=0):
    return Job("smoke", seed, "cpu", folder)


def test_the_claim_of_moving_mnist_is_the_reduction_of_the_error(folder):
    found = claim.moving_mnist(job(folder))
    ratio = found.extras["MSE, PredFormer"] / found.extras["MSE, SimVP v1"]
    assert found.method == pytest.approx(100 * (1 - ratio))
    assert found.baseline == 0
    assert found.extras["SSIM of range 2, nothing"] > found.extras["SSIM of range 1, nothing"]
    curves, ahead, strip = found.series
    assert set(curves.lines) == {"PredFormer", "SimVP v1", "SimVP v2"}
    assert all(len(errors) == study.POINTS for _, errors in curves.lines.values())
    assert all(sum(errors) / 10 == pytest.approx(found.extras[f"MSE, {name}"], rel=1e-4)
               for name, (_, errors) in ahead.lines.items())  # fmt: skip
    assert (len(strip.grid), len(strip.grid[0])) == (4 * 32, 4 * 32)


@pytest.mark.parametrize("name", ["swiglu", "speed"])
def test_smoke_runs_give_figures(name, folder):
    found = getattr(claim, name)(job(folder))
    assert min(found.method, found.baseline) > 0
    assert all(torch.tensor(list(found.extras.values())).isfinite())
    assert found.series


def test_arrangements_are_ranked(folder):
    found = claim.arrangements(job(folder))
    bars = found.series[0]
    assert len(bars.ticks) == len(ARRANGEMENTS) + 1
    assert bars.lines[""][1] == sorted(bars.lines[""][1])
    assert found.method == found.extras["MSE, TSST"] > 0
    assert found.baseline == min(found.extras["MSE, Fac-S-T"], found.extras["MSE, Fac-T-S"])


def test_models_are_trained_once_and_by_seed(folder, monkeypatch):
    first = study.trained(job(folder), "PredFormer")
    other = study.trained(job(folder, seed=1), "PredFormer")
    assert int(first.steps) == study.SIZES["smoke"].steps
    assert float(first.rate) == study.SIZES["smoke"].rates["PredFormer"]
    assert not torch.equal(first.network.head.weight, other.network.head.weight)
    monkeypatch.setattr(study, "_fit", None)  # no training any more
    again = study.trained(job(folder), "PredFormer")
    assert torch.equal(again.network.head.weight, first.network.head.weight)
    assert again.curve() == first.curve()


def test_a_rival_gets_as_many_steps_as_fit_the_time_and_a_resumed_one_keeps_them(folder, tmp_path, monkeypatch):
    rival = study.Trained(study.network("smoke", "SimVP v2"))
    before = {name: tensor.clone() for name, tensor in rival.state_dict().items()}
    steps = study._steps_of_equal_time(job(folder), rival, tmp_path / "steps")
    assert steps >= study.POINTS
    assert all(torch.equal(tensor, before[name]) for name, tensor in rival.state_dict().items())
    (tmp_path / "steps").write_text("1234")
    assert study._steps_of_equal_time(job(folder), rival, tmp_path / "steps") == 1234
    longer = dataclasses.replace(study.SIZES["smoke"], steps=100_000)
    monkeypatch.setitem(study.SIZES, "smoke", longer)
    assert study._steps_of_equal_time(job(folder), rival, tmp_path / "more") > 1000


def test_networks_that_are_compared_have_equal_parameters():
    counts = {name: count_parameters(study.network("cpu", name)) for name in study.NAMES}
    for count in counts.values():
        assert count == pytest.approx(counts["PredFormer"], rel=0.055)
    arranged = {name: count_parameters(study.arrangement("cpu", name)) for name in ARRANGEMENTS}
    triplets = [arranged.pop("tst"), arranged.pop("sts")]  # a layer of three, where the others have four blocks
    assert max(arranged.values()) == pytest.approx(min(arranged.values()), rel=0.01)
    assert max(triplets) == pytest.approx(min(triplets), rel=0.01)
    assert max(triplets) < min(arranged.values())


def test_the_paper_scale_is_the_published_size():
    with torch.device("meta"):
        networks = {name: study.network("paper", name) for name in study.NAMES}
        networks |= {name: study.arrangement("paper", name) for name in ARRANGEMENTS}
    counts = {name: count_parameters(network) / 1e6 for name, network in networks.items()}
    expected = {"SimVP v1": 57.95, "SimVP v2": 46.77}
    for name, count in counts.items():
        assert count == pytest.approx(expected.get(name, 25.3), rel=1e-3), name


def test_digits_to_test_on_are_others(folder):
    shown, held = study.source("smoke", "train"), study.source("smoke", "test")
    assert len(shown.images) == 4 * len(held.images)
    known = {tuple(image.flatten().tolist()) for image in shown.images}
    assert not any(tuple(image.flatten().tolist()) in known for image in held.images)
    assert torch.equal(study.unseen(job(folder)), study.unseen(job(folder)))
    assert not torch.equal(study.unseen(job(folder)), study.unseen(job(folder), "train"))


def test_what_is_timed_runs():
    for case in bench.cases(quick=True, device="cpu"):
        case.ours()
        for peer in case.peers.values():
            peer()


def test_plans_are_the_published_sizes():
    plan = claim.plan()
    assert plan.parameters == pytest.approx(25.3e6, rel=1e-3)
    assert claim.taxibj_plan().parameters == pytest.approx(8.44e6, rel=1e-3)
    assert plan.flops == pytest.approx(16 * 3 * 2 * 16.42e9, rel=0.02)
