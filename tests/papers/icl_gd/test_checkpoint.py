import pytest
import torch

from everyformer.papers.icl_gd import InContextTransformer, TokenMLP
from everyformer.papers.icl_gd.checkpoint import export, load

SINE = {"num_layers": 1, "num_heads": 1, "key_size": 8, "embedding_size": 8, "input_mlp": True}


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (InContextTransformer(8, embed=TokenMLP(2, 8, 32)), SINE),
        (InContextTransformer(5, heads=3, key_dim=6, bias=True, mlp=4), {
            "num_layers": 1, "num_heads": 3, "key_size": 2, "use_bias_p": True, "only_attention": False,
        }),
    ],
)  # fmt: skip
def test_what_is_exported_loads_and_predicts_the_same(model, config):
    tokens = torch.randn(3, 6, 2 if "input_mlp" in config else 5)
    state = export(model)
    again = load(state, config)
    torch.testing.assert_close(again(tokens), model(tokens))
    assert all((state[key] == tensor).all() for key, tensor in export(again).items())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"use_non_lin_mix": True}, "use_non_lin_mix"),
        ({"use_pe": True, "pe_size": 2}, "concat_pe"),
        ({"use_layer_norm": True}, "use_layer_norm"),
        ({"name": "Transformer_gd"}, "Transformer_gd/multi_head_attention/query/w"),
    ],
)
def test_what_is_not_read_is_refused(change, name):
    with pytest.raises(ValueError, match=name):
        load(export(InContextTransformer(8, embed=TokenMLP(2, 8, 32))), {**SINE, **change})
