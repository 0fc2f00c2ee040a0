import pytest
import torch

from everyformer.papers.vit_resnas import SPACES, Space, StageSpace, SuperNet, ViTResNAS, checkpoint
from everyformer.papers.vit_resnas.model import VARIANTS

DEFINITION = [[4, 8], [1, [8, 2, 4], [8, 16], 1], [1, [8, 1, 4], [8, 12], 0], [3, 8, 12], [1, [12, 1, 6], [12, 20], 1],
              [2, 12, 3]]  # fmt: skip
CONFIG = {"network_def": DEFINITION, "img_size": 56}


def test_blocks_and_reductions_are_numbered_together_and_removed_ones_count():
    state = checkpoint.export(ViTResNAS(DEFINITION, img_size=56))
    assert {key.split(".")[1] for key in state if key.startswith("blocks.")} == {"0", "2", "3"}
    assert state["blocks.2.patch_reduce.weight"].shape == (12, 8, 3, 3)
    assert checkpoint.export(checkpoint.load(state, CONFIG)).keys() == state.keys()


def test_positions_of_another_resolution_are_interpolated():
    model = ViTResNAS(DEFINITION, img_size=112).eval()
    larger = checkpoint.load(checkpoint.export(model), {**CONFIG, "img_size": 168}).eval()
    x = torch.randn(1, 3, 168, 168)
    torch.testing.assert_close(larger(x), model(x))


def test_super_networks_load_too():
    stages = (StageSpace((8, 4), (2, 1), 4, (16, 8), 2, (1,)), StageSpace((12, 8), (2, 1), 4, (24,), 1))
    state = checkpoint.export(SuperNet(Space(stages, 3, 56)))
    made = checkpoint.load(state, {"space": Space(stages), "img_size": 56, "num_classes": 3})
    assert isinstance(made, SuperNet)
    assert made.extract(made.space.smallest).head.weight.equal(state["cls_head.weight"][:, :8])
    with torch.device("meta"):
        state = checkpoint.export(SuperNet(SPACES["tiny"]))
    assert state["blocks.0.attn.qkv.weight"].shape == (3 * 6 * 32, 256)
    assert state["blocks.19.norm1.weight"].shape == (1024,)


def test_the_state_of_another_variant_is_told_with_the_one_that_fits():
    with torch.device("meta"):
        state = checkpoint.export(ViTResNAS(stages=VARIANTS["vit_resnas_small"]))
    message = r"tokens must have shape \(1, 1, 176\), got \(1, 1, 220\); the state fits vit_resnas_small"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(state, {"variant": "vit_resnas_tiny"})


def test_options_that_do_not_fit_are_named():
    state = checkpoint.export(ViTResNAS(DEFINITION, img_size=56))
    with pytest.raises(ValueError, match=r"config\['variant'\] must be one of .*'vit_resnas_medium'\], got 'vit'"):
        checkpoint.load(state, {"variant": "vit"})
    with pytest.raises(ValueError, match="unknown option depth"):
        checkpoint.load(state, {**CONFIG, "depth": 3})
    with pytest.raises(ValueError, match="config must give one of variant, network_def and space, got none"):
        checkpoint.load(state, {})
