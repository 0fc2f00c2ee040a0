import pytest
import torch

from everyformer.parts.mixers.fnet import FNet
from everyformer.parts.mixers.gmlp import GMLP
from everyformer.parts.mixers.mlp_mixer import MLPMixer


def test_gates_begin_near_one():
    mixer, x = GMLP(16, length=12), torch.randn(2, 12, 16)
    left, _ = torch.nn.functional.gelu(mixer.inside(x)).chunk(2, dim=-1)
    torch.testing.assert_close(mixer(x), mixer.out(left), rtol=0.1, atol=0.05)


def test_mixing_with_known_matrices():
    mixer, x = MLPMixer(4, length=3, hidden=3), torch.rand(1, 3, 4) + 4  # so large that GELU is the identity
    with torch.no_grad():
        mixer.up.weight.copy_(torch.eye(3))
        mixer.down.weight.copy_(torch.eye(3).roll(1, 0))
        mixer.up.bias.zero_()
        mixer.down.bias.zero_()
    torch.testing.assert_close(mixer(x), x.roll(1, 1), rtol=1e-3, atol=1e-3)


def test_a_fourier_transform_of_a_wave_is_one_place():
    place = torch.arange(8.0)
    wave = torch.cos(2 * torch.pi * 3 * place / 8)[None, :, None].expand(1, 8, 4)
    found = FNet(4)(wave)
    expected = torch.zeros(1, 8, 4)
    expected[0, 3, 0] = expected[0, 5, 0] = 8 * 4 / 2 / 32**0.5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_fourier_transform_keeps_the_tokens_scale():
    x = torch.randn(4, 64, 32)
    assert FNet(32)(x).square().mean() == pytest.approx(0.5, abs=0.05)  # the other half is imaginary


@pytest.mark.parametrize(("kind", "given"), [(GMLP, {"expand": 0}), (MLPMixer, {"hidden": 0})])
def test_widths_below_one_are_refused(kind, given):
    with pytest.raises(ValueError, match="must be at least 1"):
        kind(16, length=8, **given)
