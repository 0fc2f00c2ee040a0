import pytest
import torch

from everyformer.lab.measure import count_flops, count_parameters
from everyformer.papers.predformer.claim import TAXIBJ
from everyformer.papers.predformer.simvp import SimVP


# OpenSTL's tables: millions of parameters, GMAC.
@pytest.mark.parametrize(
    ("options", "parameters", "macs"),
    [
        ({}, 58.0, 19.4),
        ({"version": 2}, 46.8, 16.5),
        (TAXIBJ, 13.79, 3.61),
        ({**TAXIBJ, "version": 2}, 9.96, 2.62),
        ({**TAXIBJ, "in_shape": (12, 1, 32, 64)}, 14.67, 8.03),
    ],
)
def test_published_sizes_have_the_published_parameters_and_macs(options, parameters, macs):
    with torch.device("meta"):
        net = SimVP(**options).eval()
        video = torch.zeros(1, *net.in_shape)
    assert count_parameters(net) / 1e6 == pytest.approx(parameters, rel=1e-3)
    assert count_flops(lambda: net(video)) / 2e9 == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize("version", [1, 2])
def test_the_last_frame_depends_on_the_first_and_all_weights_learn(version):
    net = SimVP((3, 2, 16, 8), version=version, hidden=8, translator=16, depth=3, mlp_ratio=2)
    video = torch.randn(2, 3, 2, 16, 8, requires_grad=True)
    out = net(video)
    assert out.shape == video.shape
    out[:, -1].square().sum().backward()
    assert video.grad[:, 0].any()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_shape": (3, 1, 18, 16)}, "height and width must be divisible by 4, got 18 x 16"),
        ({"version": 3}, "version must be 1 or 2, got 3"),
        ({"hidden": 5}, "hidden must be even"),
        ({"translator": 12}, "translator and frames [*] hidden multiples of 8"),
    ],
)
def test_sizes_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SimVP(**{"in_shape": (2, 1, 16, 16), "hidden": 8, "translator": 16, "depth": 2, **options})


def test_a_video_of_another_shape_is_named():
    net = SimVP((2, 1, 16, 16), hidden=8, translator=16, depth=2)
    with pytest.raises(ValueError, match=r"video must be \(batch, 2, 1, 16, 16\), got \(1, 3, 1, 16, 16\)"):
        net(torch.zeros(1, 3, 1, 16, 16))
