import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.utils import reparameterize_model
from torch import nn

import everyformer
from everyformer.lab import images
from everyformer.papers.fmvit import (
    ConvolutionalFusionBlock,
    FMViT,
    FrequencyMixingBlock,
    GroupedMLP,
    LightAttention,
)
from everyformer.papers.fmvit.claim import lived_in
from everyformer.papers.fmvit.model import VARIANTS
from everyformer.parts.reparam import RepConv2d, reparameterize

SMALL = {
    "num_classes": 5,
    "dims": (16, 64, 96, 64),
    "local": (1, 1, 1, 0),
    "mixed": (0, 1, 1, 1),
    "reductions": (8, 4, 2, 1),
}


def small(**options):
    torch.manual_seed(0)
    return lived_in(FMViT(**{**SMALL, **options}), 64)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


# Parameters of ours, folded; M and G as a public table repeats them from the paper.
@pytest.mark.parametrize(
    ("variant", "exact", "published_parameters", "published_macs"),
    [
        ("fmvit_t", 1_969_096, 2.0, 0.3),
        ("fmvit_s", 6_411_288, 6.4, 0.8),
        ("fmvit_m", 12_787_560, 12.8, 2.0),
        ("fmvit_b", 24_282_408, 24.3, 4.2),
        ("fmvit_l", 35_229_288, 35.3, 7.1),
    ],
)
def test_folded_totals_are_near_the_published_ones(variant, exact, published_parameters, published_macs):
    with torch.device("meta"):
        model = timm.create_model(variant)
        model.reparameterize()
        folded = images.macs(model)
    assert parameters(model) == exact
    assert exact / 1e6 == pytest.approx(published_parameters, rel=0.02)
    assert folded / 1e9 == pytest.approx(published_macs, rel=0.03)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_in_both_registries(variant):
    assert timm.is_model(variant)
    assert variant in everyformer.list_models()
    model = timm.create_model(variant, num_classes=3, in_chans=1, drop_path_rate=0.1)
    assert model.default_cfg["input_size"] == (3, 224, 224)
    assert model.default_cfg["classifier"] == "head"
    assert [model.get_submodule(name).in_channels for name in model.default_cfg["first_conv"]] == [1, 1]
    assert max(m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath") == pytest.approx(0.1)
    model.reset_classifier(0)
    assert model.eval().forward_head(model.forward_features(torch.randn(1, 1, 64, 64))).shape == (1, model.num_features)
    assert everyformer.create_model(variant, num_classes=7).get_classifier().out_features == 7


def test_features_are_the_stages_maps_and_fold():
    model = lived_in(timm.create_model("fmvit_t", features_only=True), 64)
    x = torch.randn(1, 3, 64, 96)
    maps, folded = model(x), reparameterize_model(model)(x)
    for found, other, dim, stride in zip(
        maps, folded, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert found.shape == (1, dim, 64 // stride, 96 // stride)
        # Maps are not normalised: the largest value is the measure.
        torch.testing.assert_close(other, found, atol=1e-5 * found.abs().max().item(), rtol=0)
    assert len(timm.create_model("fmvit_t", features_only=True, out_indices=(-1,))(x)) == 1


@pytest.mark.parametrize("variant", ["fmvit_t", "fmvit_l"])
def test_folded_variants_give_the_same_outputs_without_a_norm_of_a_branch(variant):
    torch.manual_seed(0)
    model, x = lived_in(timm.create_model(variant), 64), torch.randn(2, 3, 64, 64)
    folded = reparameterize_model(model)
    torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-5)
    assert count(folded, nn.BatchNorm2d) == 0
    assert not any("branches" in name for name, _ in folded.named_modules())
    # Two convolutions in the stem, two for each later stage, three for a CFB; six for an FMB: queries, keys and values,
    # the high frequencies, the fusion that holds the attention's projection, and two of the gMLP.
    sizes = VARIANTS[variant]
    assert count(folded, nn.Conv2d) == 2 + 2 * 3 + 3 * sum(sizes["local"]) + 6 * sum(sizes["mixed"])
    assert parameters(folded) < parameters(model)
    assert images.macs(folded, 32) < 0.85 * images.macs(model, 32)


def test_folding_is_in_place_and_once():
    model, x = small(), torch.randn(2, 3, 64, 64)
    expected = model(x)
    assert model.reparameterize() is model
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    state = model.reparameterize().state_dict()
    again = FMViT(**SMALL).reparameterize()
    again.load_state_dict(state, strict=True)
    torch.testing.assert_close(again.eval()(x), model(x), rtol=0, atol=0)


def test_a_folded_network_trains_on():
    model = small().reparameterize().train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@settings(max_examples=12, deadline=None)
@given(st.integers(32, 150), st.integers(32, 150))
def test_any_size_from_the_total_stride_up(height, width):
    assert small()(torch.randn(1, 3, height, width)).shape == (1, 5)


@pytest.mark.parametrize("fold", [False, True])
def test_it_exports_compiles_runs_in_bf16_and_reloads_strictly(fold):
    tiny = {"num_classes": 5, "dims": (16, 64), "local": (1, 0), "mixed": (0, 1), "reductions": (2, 2)}
    model, again, x = lived_in(FMViT(**tiny), 32), FMViT(**tiny), torch.randn(2, 3, 32, 32)
    if fold:
        model.reparameterize()
        again.reparameterize()
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    again.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(again.eval()(x), expected)
    assert model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


def test_gradients_reach_the_input_and_every_weight():
    model, x = small(drop_path_rate=0.1).train(), torch.randn(4, 3, 64, 64, requires_grad=True)
    model(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


@pytest.mark.parametrize(
    "block",
    [
        lambda: GroupedMLP(32),
        lambda: ConvolutionalFusionBlock(32),
        lambda: LightAttention(32, heads=2, reduction=2),
        lambda: FrequencyMixingBlock(64, reduction=3),
        lambda: FrequencyMixingBlock(64, low=0.0),
        lambda: FrequencyMixingBlock(64, low=1.0),
    ],
)
def test_each_part_works_and_folds_alone(block):
    torch.manual_seed(0)
    part = block()
    for norm in part.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
    part.eval()
    x = torch.randn(2, 32 if not isinstance(part, FrequencyMixingBlock) else 64, 7, 5)
    expected = part(x)
    assert expected.shape == x.shape
    fold = part.reparameterize if hasattr(part, "reparameterize") else lambda: reparameterize(part)
    fold()
    torch.testing.assert_close(part(x), expected, atol=1e-5, rtol=1e-5)
    assert count(part, nn.BatchNorm2d) == 0


def test_attention_is_its_equation_on_averages():
    torch.manual_seed(0)
    module = LightAttention(12, heads=3, reduction=2).eval()
    x = torch.randn(2, 12, 5, 4)
    pooled = torch.empty(2, 12, 3, 2)
    for row in range(3):
        for column in range(2):
            pooled[:, :, row, column] = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((2, 3))
    query = module.query(x).flatten(2)
    key, value = module.key_value(pooled).flatten(2).chunk(2, dim=1)
    heads = []
    for part in (slice(4 * h, 4 * h + 4) for h in range(3)):
        scores = query[:, part].transpose(1, 2) @ key[:, part] / 2
        heads.append(value[:, part] @ scores.softmax(-1).transpose(1, 2))
    mixed = torch.cat(heads, dim=1).unflatten(2, (5, 4))
    torch.testing.assert_close(module(x), module.project(mixed))


def test_values_hold_low_frequencies_only():
    module = LightAttention(8, heads=1, reduction=2).eval()
    board = (torch.arange(6)[:, None] + torch.arange(6)) % 2 * 2.0 - 1
    checks = board.expand(1, 8, 6, 6)
    seen = []
    module.key_value.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    smooth = torch.randn(1, 8, 1, 1).expand(1, 8, 6, 6)
    module(smooth + checks)
    torch.testing.assert_close(seen[0], F.avg_pool2d(smooth, 2))


def test_shares_of_the_frequencies():
    assert FrequencyMixingBlock(128).split == (64, 64)
    assert FrequencyMixingBlock(128, low=0.25).split == (32, 96)
    low, high = FrequencyMixingBlock(64, low=1.0), FrequencyMixingBlock(64, low=0.0)
    assert low.local is None
    assert high.attention is None
    assert count(high, RepConv2d) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small()(torch.randn(1, 3, 64, 31)), r"at least 32 x 32 pixels, got \(64, 31\)"),
        (lambda: small()(torch.randn(1, 1, 64, 64)), r"shape \(batch, 3, height, width\), got \(1, 1, 64, 64\)"),
        (lambda: FMViT(local=(1, 1)), r"must be as many, got \[4, 2, 4, 4\]"),
        (lambda: FMViT(dims=(8, 16, 32, 64)), "dims must be multiples of 16"),
        (lambda: FMViT(patch=8), "patch must be 2 or 4, got 8"),
        (lambda: small().reset_classifier(3, "max"), "global_pool must be 'avg'"),
        (lambda: LightAttention(10, heads=3), "dim must be a multiple of heads, got dim=10 and heads=3"),
        (lambda: LightAttention(10, heads=2, reduction=0), "reduction must be at least 1"),
        (lambda: FrequencyMixingBlock(64, low=1.5), "low must be between 0 and 1, got 1.5"),
        (lambda: FrequencyMixingBlock(80, low=1.0), "dim=80 and low=1.0 must split into whole heads of 32, got"),
        (lambda: FrequencyMixingBlock(32), r"must split into whole heads of 32, got \(0, 32\)"),
        (lambda: everyformer.create_model("fmvit_x"), "fmvit_"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
