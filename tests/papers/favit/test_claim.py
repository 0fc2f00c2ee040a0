import pytest
import torch
from torch import nn

from everyformer.catalog import Job
from everyformer.papers.favit import claim


@pytest.fixture
def job(tmp_path):
    return Job("smoke", 0, "cpu", tmp_path)


def test_clean_and_corrupted_pictures_from_one_training(job):
    found = claim.robustness(job)
    assert 0 <= found.method <= 100
    assert 0 <= found.baseline <= 100
    assert found.extras["accuracy on blur, Swin"] >= 0
    again = claim.accuracy(job)  # the folder has the trained networks
    assert again.method == found.extras["accuracy, FaViT"]
    assert again.baseline == found.extras["accuracy, Swin"]


def test_the_networks_compared_cost_the_same(job):
    networks = claim._networks(job)
    ours, swin = (claim.images.macs(networks[name], 32) for name in ("FaViT", "Swin"))
    assert ours == pytest.approx(swin, rel=0.05)


def test_b2_and_swin_have_their_parameters(job):
    found = claim.parameters(job)
    assert found.method == 24.919896
    assert found.baseline == 28.288354


def test_growth_is_timed_and_counted(job):
    found = claim.resolution(job)
    assert found.extras["exponent of multiply-adds, FaSA"] < found.extras["exponent of multiply-adds, global"]
    assert len(found.series[0].lines) == 3


def test_multiply_adds_of_attention_are_those_of_its_formula():
    x = torch.randn(1, 56, 56, 64)
    projections = 56**2 * 64 * 64 * 4
    layers = claim.attention(0)
    assert claim._macs(layers["windows"], x) == projections + 2 * 56**2 * 49 * 64
    assert claim._macs(layers["global"], x) == projections + 2 * 56**4 * 64
    scores = 2 * 56**2 * 49 * 64  # two groups' 49 keys and 49 coarse ones, all 64 channels
    assert scores < claim._macs(layers["FaSA"], x) < scores + projections


def test_the_slope_is_the_power():
    pixels = [64.0**2, 128.0**2, 512.0**2]
    assert claim.exponent(pixels, [3 * p**1.25 for p in pixels]) == pytest.approx(1.25)


def test_sight_is_what_the_centre_depends_on():
    seen = claim.sight(nn.Conv2d(3, 4, 3, padding=1), torch.randn(1, 3, 9, 9)) > 0
    assert seen.sum() == 9
    assert seen[3:6, 3:6].all()


def test_windows_see_a_neighbourhood_and_favit_everything(job):
    found = claim.receptive_field(job)
    assert found.method == 100
    assert found.baseline < 10


@pytest.mark.parametrize("name", ["accuracy", "resolution"])
def test_plans_build_the_published_network(name):
    plan = getattr(claim, f"plan_{name}")()
    assert plan.parameters == 24_919_896
    assert f"favit.{name} " in plan.launch
