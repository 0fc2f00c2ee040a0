import pytest
import torch

from everyformer.papers.sret import checkpoint
from everyformer.papers.sret.model import create
from everyformer.parts import checkpoints

TINY = {"model": "sret_t", "num_classes": 4}


@pytest.fixture(scope="module")
def state():
    return checkpoint.export(create("sret_t", num_classes=4))


def test_a_published_variant_goes_there_and_back(state, tmp_path):
    assert len(state) == 510
    torch.save({"model": state}, tmp_path / "sret.pth")
    model = checkpoint.load(checkpoints.read(tmp_path / "sret.pth"), TINY)
    back = checkpoint.export(model)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_another_variants_weights_are_named_with_the_one_that_fits(state):
    with pytest.raises(ValueError, match=r"transformers\.0\.blocks\.0\.mlp\.fc1\.weight .* fits sret_t, sret_t_un"):
        checkpoint.load(state, {"model": "sret_lt", "num_classes": 4})


def test_copies_of_a_shared_block_must_agree(state):
    key = "transformers.1.blocks.2.attn.qkv.bias"
    changed = {**state, key: state[key] + 1}
    with pytest.raises(ValueError, match=r"transformers\.1\.blocks\.0\.attn\.qkv\.bias and .* must be equal"):
        checkpoint.load(changed, TINY)


def test_arguments_that_do_not_fit_are_named(state):
    with pytest.raises(ValueError, match="config must give image_size"):
        checkpoint.load(state, {"depth": [4, 10, 6]})
    sizes = {"image_size": 64, "depth": [2], "recursive_num": [1], "heads": [1], "mlp_ratio": 4, "np_mlp_ratio": 1}
    with pytest.raises(ValueError, match="the same base_dims"):
        checkpoint.load(state, {**sizes, "base_dims": [8, 16]})
