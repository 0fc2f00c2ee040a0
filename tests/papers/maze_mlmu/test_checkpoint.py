import pytest
import torch

from everyformer.papers.maze_mlmu import PAST, checkpoint

CONFIG = {"vocab_size": 12, "n_embd": 8, "n_layer": 2, "n_head": 2}


def test_a_checkpoint_of_lightning_loads_too():
    state = checkpoint.export(PAST(vocabulary=12, dim=8, depth=2, heads=2))
    assert state["enc.layers.1.attn.c_attn.weight"].shape == (24, 8) and state["wpe.weight"].shape == (1, 8)
    assert state["dec.layers.1.attn.c_attn_mem.bias"].shape == (16,)
    model = checkpoint.load({f"model.{key}": tensor for key, tensor in state.items()}, CONFIG, hidden=(0,))
    assert model.hidden_tokens == (0,) and model.head.weight is model.embedding.weight
    back = checkpoint.export(model)
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("option", [{"attn_sink": True}, {"stack_enc_dec": False}, {"n_layers": 3}])
def test_an_option_that_is_not_supported_is_named(option):
    (name,) = option
    with pytest.raises(ValueError, match=rf"config\['{name}'\] must be one of vocab_size, .* got {option[name]}"):
        checkpoint.load({}, {**CONFIG, **option})


def test_a_missing_key_is_named():
    state = checkpoint.export(PAST(vocabulary=12, dim=8, depth=2, heads=2))
    del state["dec.layers.0.attn.c_attn_mem.weight"]
    with pytest.raises(ValueError, match=r"state lacks the key dec\.layers\.0\.attn\.c_attn_mem\.weight"):
        checkpoint.load(state, CONFIG)
