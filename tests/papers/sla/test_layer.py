import pytest
import torch

from everyformer.papers.sla import SparseLinearAttention


def inputs(tokens=70, dim=8, dtype=torch.float32):
    return torch.randn(3, 2, 2, tokens, dim).to(dtype).unbind(0)


def test_it_starts_as_sparse_attention_and_learns_the_linear_branch():
    layer = SparseLinearAttention(8, critical=0.3, block=16)
    query, key, value = inputs()
    only_sparse = layer(query, key, value)
    loss = (layer(query, key, value) - value).square().mean()
    loss.backward()
    assert layer.proj.weight.grad.abs().sum() > 0
    with torch.no_grad():
        layer.proj.weight -= layer.proj.weight.grad
    assert not torch.allclose(layer(query, key, value), only_sparse)


def test_everything_critical_is_full_attention_whatever_the_lengths():
    layer = SparseLinearAttention(8, critical=1.0, negligible=0.0, block=16)
    query, (_, key, value) = inputs(45)[0], inputs(70)
    torch.testing.assert_close(
        layer(query, key, value), torch.nn.functional.scaled_dot_product_attention(query, key, value)
    )


def test_state_round_trips_strictly():
    layer, again = SparseLinearAttention(8), SparseLinearAttention(8)
    torch.nn.init.normal_(layer.proj.weight)
    again.load_state_dict(layer.state_dict(), strict=True)
    query, key, value = inputs()
    torch.testing.assert_close(again(query, key, value), layer(query, key, value))


def test_it_runs_in_bf16():
    layer = SparseLinearAttention(8, block=16).to(torch.bfloat16)
    out = layer(*inputs(dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"critical": 1.5}, r"critical must be a fraction in \[0, 1\], got 1.5"),
        ({"negligible": -0.1}, "negligible must be a fraction"),
        ({"critical": float("nan")}, "critical must be a fraction"),
        ({"critical": 0.7, "negligible": 0.5}, r"critical \+ negligible must be at most 1"),
        ({"block": 0}, "block must be at least 1"),
        ({"feature_map": "tanh"}, "feature_map must be one of softmax, elu, relu"),
        ({"linear_over": "some"}, "linear_over must be"),
    ],
)
def test_settings_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SparseLinearAttention(**{"head_dim": 8, **options})


def test_bad_inputs_are_named():
    layer = SparseLinearAttention(8, block=16)
    query, key, value = inputs()
    with pytest.raises(ValueError, match="head_dim 8, got 4"):
        layer(*inputs(dim=4))
    with pytest.raises(ValueError, match="no causal form"):
        layer(query, key, value, is_causal=True)
    for name, place in (("query", 0), ("key", 1), ("value", 2)):
        broken = [query.clone(), key.clone(), value.clone()]
        broken[place][1, 0, 3, 2] = float("inf")
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            layer(*broken)
