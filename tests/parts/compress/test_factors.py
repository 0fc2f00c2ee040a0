import pytest
import torch
from torch import nn

from everyformer.parts.compress import anatomy, factors, pruning

KINDS = ("ours", "llama", "gpt2", "bert", "hf_vit", "vit")


@pytest.mark.parametrize("kind", KINDS)
def test_factors_have_fewer_weights_and_the_least_error(models, kind):
    model, inputs = models.build(kind)
    anatomy.prepare(model)
    before = {name: layer.weight.detach().clone() for name, layer in anatomy.linears(model).items()}
    factors.low_rank(model, 0.5)
    assert models.logits(model, inputs).isfinite().all()
    for name, weight in before.items():
        down, up = layer = model.get_submodule(name)
        torch.testing.assert_close(layer.weight, up.weight @ down.weight)
        assert layer.bias is up.bias
        assert down.weight.numel() + up.weight.numel() <= weight.numel() / 2
        sizes = torch.linalg.svdvals(weight)
        rank = len(down.weight)
        torch.testing.assert_close((weight - up.weight @ down.weight).norm(), sizes[rank:].norm(), rtol=1e-3, atol=1e-5)


def test_a_layer_of_low_rank_stays_what_it_is():
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(64, 16) @ torch.randn(16, 64))
    model, x = nn.Sequential(layer), torch.randn(3, 64)
    expected = model(x)
    torch.testing.assert_close(factors.low_rank(model, 0.5)(x), expected, atol=1e-4, rtol=1e-4)


def test_factors_of_frozen_weights_are_frozen():
    model = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    factors.low_rank(model)
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learned == {"2.0.weight", "2.1.weight"}


def test_blocks_share_and_go_on_sharing(models):
    model, inputs = models.build("llama")
    whole = sum(parameter.numel() for parameter in model.parameters())
    factors.share_blocks(model, 2)
    after = sum(parameter.numel() for parameter in model.parameters())
    blocks = anatomy.blocks(model)[1]
    assert whole - after == sum(parameter.numel() for parameter in blocks[0].parameters()) * 2
    assert blocks[1].mlp.up_proj.weight is blocks[0].mlp.up_proj.weight
    kept = model.generate(inputs, max_new_tokens=3, do_sample=False, use_cache=True)
    assert torch.equal(kept, model.generate(inputs, max_new_tokens=3, do_sample=False, use_cache=False))
    pruning.magnitude(model, 0.5)
    factors.low_rank(model, 0.5)
    assert blocks[1].mlp.up_proj[0].weight is blocks[0].mlp.up_proj[0].weight


def test_what_cannot_be_shared_or_factorised_is_refused(models):
    model, _ = models.build("ours")
    for ratio in (0, 1.0):
        with pytest.raises(ValueError, match="ratio must be above 0 and below 1"):
            factors.low_rank(model, ratio)
    with pytest.raises(ValueError, match="at least rank 1"):
        factors.low_rank(model, 0.001)
    for every in (1, 5):
        with pytest.raises(ValueError, match=f"every must be from 2 to the 4 blocks, got {every}"):
            factors.share_blocks(model, every)
    first = next(iter(anatomy.attentions(model).values()))
    first.keep([0])
    with pytest.raises(ValueError, match="equal sizes to share weights, got another in block 1"):
        factors.share_blocks(model, 2)
    shared = factors.share_blocks(models.build("ours")[0], 2)
    with pytest.raises(ValueError, match="before sharing"):
        pruning.prune_heads(shared, 0.5)
