import pytest
import torch

from everyformer.papers.adaptformer import AdaptMLP


def randomised(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.eval()


@pytest.mark.parametrize("layernorm", ["none", "in", "out"])
@pytest.mark.parametrize("scale", [0.1, "learnable"])
def test_the_branch_is_its_equation(layernorm, scale):
    torch.manual_seed(0)
    branch, x = randomised(AdaptMLP(6, 3, scale=scale, layernorm=layernorm)), torch.randn(2, 5, 6)
    inner = branch.norm(x) if layernorm == "in" else x
    hidden = torch.clamp(inner @ branch.down.weight.T + branch.down.bias, min=0)
    expected = (hidden @ branch.up.weight.T + branch.up.bias) * branch.scale
    if layernorm == "out":
        expected = branch.norm(expected)
    torch.testing.assert_close(branch(x), expected)


def test_it_starts_at_zero_with_a_scale_of_one_where_it_is_trained():
    for layernorm in ("none", "in", "out"):
        assert not AdaptMLP(8, 2, layernorm=layernorm)(torch.randn(3, 4, 8)).any()
    assert AdaptMLP(8, 2, scale="learnable").scale.tolist() == [1.0]
    assert sum(p.numel() for p in AdaptMLP(768, 64).parameters()) == 2 * 768 * 64 + 64 + 768


def test_dropout_acts_in_training_only():
    branch, x = randomised(AdaptMLP(8, 32, dropout=0.5)), torch.randn(2, 4, 8)
    assert torch.equal(branch(x), branch(x))
    assert not torch.equal(branch.train()(x), branch(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"bottleneck": 0}, "bottleneck must be at least 1, got 0"),
        ({"layernorm": "before"}, r"layernorm must be one of \('none', 'in', 'out'\), got 'before'"),
        ({"scale": "big"}, "scale must be a number or 'learnable', got 'big'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptMLP(**{"dim": 8, **options})
