import pytest
import torch
from safetensors.torch import save_file

from everyformer.papers.fmvit import FMViT, checkpoint
from everyformer.papers.fmvit.claim import lived_in
from everyformer.papers.fmvit.model import VARIANTS
from everyformer.parts import checkpoints

TINY = {"num_classes": 5, "dims": (16, 64), "local": (1, 0), "mixed": (0, 1), "reductions": (2, 1)}


@pytest.mark.parametrize("fold", [False, True])
def test_weights_come_back_from_a_file_with_branches_and_folded(fold, tmp_path):
    model, x = lived_in(FMViT(**TINY), 32), torch.randn(2, 3, 32, 32)
    if fold:
        model.reparameterize()
    save_file(checkpoint.export(model), tmp_path / "model.safetensors")
    again = checkpoint.load(checkpoints.read(tmp_path / "model.safetensors"), TINY).eval()
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("fold", [False, True])
def test_a_missing_unexpected_or_misshapen_key_is_named(fold):
    model = FMViT(**TINY)
    state = checkpoint.export(model.reparameterize() if fold else model)
    key = "stages.1.1.fusion." + ("weight" if fold else "branches.0.0.weight")
    with pytest.raises(ValueError, match=f"state lacks the key {key}"):
        checkpoint.load({k: v for k, v in state.items() if k != key}, TINY)
    with pytest.raises(ValueError, match="unexpected key surplus"):
        checkpoint.load({**state, "surplus": torch.zeros(1)}, TINY)
    with pytest.raises(ValueError, match=f"{key} must have shape"):
        checkpoint.load({**state, key: torch.zeros(2)}, TINY)


@pytest.mark.parametrize("fold", [False, True])
def test_the_state_of_another_variant_is_told_with_the_one_that_fits(fold):
    with torch.device("meta"):
        model = FMViT(num_classes=7, in_chans=1, **VARIANTS["fmvit_m"])
        state = checkpoint.export(model.reparameterize() if fold else model)
    key = checkpoint.FOLDED if fold else checkpoint.FIRST
    with pytest.raises(ValueError, match=rf"{key} must have shape \(16, 3.*; the state fits fmvit_m$"):
        checkpoint.load(state, {"variant": "fmvit_t"})


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match=r"config\['variant'\] must be one of .*'fmvit_l'\], got 'fmvit_x'"):
        checkpoint.load({}, {"variant": "fmvit_x"})
    with pytest.raises(ValueError, match="state lacks the key"):
        checkpoint.load({}, TINY)
