import pytest
import torch

from everyformer.lab.corruptions import CORRUPTIONS, SEVERITIES, corrupted


def pictures():
    """Smooth pictures, none of their pixels near black or white."""
    coarse = 60 + 140 * torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear").to(torch.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_kind_changes_pictures_the_more_the_higher_its_severity(kind):
    clean = pictures()
    changes = []
    for severity in SEVERITIES:
        found = corrupted(clean, kind, severity)
        assert found.shape == clean.shape
        assert found.dtype == torch.uint8
        changes.append((found.float() - clean.float()).abs().mean().item())
    assert 0 < changes[0] < changes[-1]
    assert changes == sorted(changes)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_seed_fixes_what_is_drawn(kind):
    clean = pictures()
    before = torch.random.get_rng_state()
    found = corrupted(clean, kind, 3, seed=1)
    assert torch.equal(found, corrupted(clean, kind, 3, seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    drawn = kind in ("noise", "salt and pepper", "brightness")
    assert torch.equal(found, corrupted(clean, kind, 3, seed=2)) is not drawn


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"kind must be one of noise, .*, got 'fog'"):
        corrupted(pictures(), "fog", 1)
    with pytest.raises(ValueError, match=r"severity must be one of .* got 6"):
        corrupted(pictures(), "noise", 6)
