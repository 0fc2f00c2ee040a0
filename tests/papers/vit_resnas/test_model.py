import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import everyformer
from everyformer.lab import images
from everyformer.papers.vit_resnas import MaskedLayerNorm, ResidualSpatialReduction, Stage, ViTResNAS, macs
from everyformer.papers.vit_resnas.model import VARIANTS, as_map, checked, define, stripped

STAGES = (Stage(8, 4, [(2, 16), (3, 12)]), Stage(12, 4, [(2, 20)]), Stage(12, 6, [(2, 24)]))
DEFINITION = define(STAGES, 5, 6)


def small(**options):
    torch.manual_seed(0)
    return ViTResNAS(DEFINITION, **{"img_size": 56, **options}).eval()


# Parameters as the authors' code has them, multiply-adds by the count that bounded their search.
TABLE = {
    "vit_res_tiny": (42_012_736, 1.7944),
    "vit_resnas_tiny": (40_793_552, 1.7826),
    "vit_resnas_small": (63_724_108, 2.8455),
    "vit_resnas_medium": (96_442_672, 4.5131),
}


@pytest.mark.parametrize("variant", TABLE)
def test_parameters_and_multiply_adds_are_the_published_ones(variant):
    with torch.device("meta"):
        model = ViTResNAS(stages=VARIANTS[variant])
    assert sum(p.numel() for p in model.parameters()) == TABLE[variant][0]
    assert round(macs(model.definition) / 1e9, 4) == TABLE[variant][1]
    assert macs(model.definition) == images.macs(model)


@pytest.mark.parametrize("img_size", [56, 112])
def test_the_count_is_what_runs(img_size):
    model = ViTResNAS(DEFINITION, img_size=img_size, in_chans=1)
    assert macs(DEFINITION, img_size, in_chans=1) == images.macs(model, img_size, 1)
    linear = ((0, 8), *DEFINITION[1:])
    model = ViTResNAS(linear, img_size=64, patch=4, distilled=True)
    assert macs(linear, 64, 4, tokens=2) == images.macs(model, 64)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_in_both_registries(variant):
    assert timm.is_model(variant)
    assert variant in everyformer.list_models()


def test_timms_options_are_understood():
    model = timm.create_model("vit_resnas_tiny", num_classes=3, in_chans=1, drop_path_rate=0.1)
    assert model.default_cfg["input_size"] == (3, 224, 224)
    assert model.get_submodule(model.default_cfg["first_conv"]).in_channels == 1
    assert max(m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath") == pytest.approx(0.1)
    assert model.get_classifier().out_features == 3
    model.reset_classifier(0)
    x = torch.randn(1, 1, 56, 56)
    assert model.eval().forward_head(model.forward_features(x)).shape == (1, model.num_features)
    assert model(x).shape == (1, 704)


def test_features_are_the_stages_maps():
    model = timm.create_model("vit_resnas_tiny", img_size=112, features_only=True)
    assert model.feature_info.reduction() == [14, 28, 56]
    x = torch.randn(1, 3, 112, 56)
    for found, dim, stride in zip(model(x), model.feature_info.channels(), model.feature_info.reduction(), strict=True):
        assert found.shape == (1, dim, 112 // stride, 56 // stride)
    last = timm.create_model("vit_resnas_tiny", img_size=112, features_only=True, out_indices=(-1,))
    assert [tuple(found.shape) for found in last(x)] == [(1, 704, 2, 1)]


def test_intermediates_agree_with_the_forward_pass():
    model, x = small(), torch.randn(2, 3, 56, 56)
    tokens, maps = model.forward_intermediates(x, norm=True)
    torch.testing.assert_close(model.forward_head(tokens), model(x))
    torch.testing.assert_close(maps[-1], as_map(tokens[:, 1:], (1, 1)))
    flat = model.forward_intermediates(x, [0], stop_early=True, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(as_map(flat[0], (4, 4)), maps[0])


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4))
def test_any_multiple_of_the_total_stride(rows, columns):
    assert small()(torch.randn(1, 3, 56 * rows, 56 * columns)).shape == (1, 5)


def test_a_higher_resolution_is_the_same_on_the_fly_and_after_a_change_of_tables():
    model, x = small(img_size=112), torch.randn(1, 3, 168, 168)
    expected = model(x)
    model.set_input_size(168)
    assert model.positions.shape == (1, 145, 8)
    assert model.stages[2].reduction.positions.shape == (1, 9, 12)
    torch.testing.assert_close(model(x), expected)


def test_it_exports_compiles_runs_in_bf16_and_reloads_strictly():
    model, x = small(), torch.randn(2, 3, 56, 56)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    again = ViTResNAS(DEFINITION, img_size=56)
    again.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(again.eval()(x), expected)
    assert model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{}, {"distilled": True}, {"patch_output": True}])
def test_gradients_reach_the_input_and_every_weight(options):
    model, x = small(**options).train(), torch.randn(2, 3, 112, 112, requires_grad=True)
    out = model(x)
    sum(part.square().sum() for part in (out if isinstance(out, tuple) else [out])).backward()
    assert x.grad.abs().sum() > 0
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    if options:
        assert [tuple(part.shape) for part in out] == [(2, 5), (2, 5) if "distilled" in options else (2, 4, 5)]


def test_the_reduction_is_its_equation():
    torch.manual_seed(0)
    module = ResidualSpatialReduction(6, 10, (4, 6), tokens=2)
    x = torch.randn(3, 26, 6)
    z = F.layer_norm(x, (6,), module.norm.weight, module.norm.bias, 1e-6)
    conv = F.conv2d(z[:, 2:].transpose(1, 2).reshape(3, 6, 4, 6), module.conv.weight, module.conv.bias, 2, 1)
    patches = conv.flatten(2).transpose(1, 2) + module.positions
    plain = torch.cat([module.token_proj(z[:, :2]), patches], dim=1)
    pooled = x[:, 2:].reshape(3, 2, 2, 3, 2, 6).mean((2, 4)).reshape(3, 6, 6)
    skip = torch.cat([torch.cat([x[:, :2], pooled], dim=1), torch.zeros(3, 8, 4)], dim=2)
    torch.testing.assert_close(module(x), plain + skip)
    module.residual = False
    torch.testing.assert_close(module(x), plain)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 1000))
def test_the_masked_norm_is_the_norm_of_what_is_kept(kept, seed):
    torch.manual_seed(seed)
    norm = MaskedLayerNorm(7).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    mask = (torch.tensor(kept)[:, None] > torch.arange(7)).double()[:, None]
    x = torch.randn(len(kept), 3, 7, dtype=torch.float64).mul(mask).requires_grad_()
    weight = torch.randn(len(kept), 3, 7, dtype=torch.float64)
    found = norm(x, mask)
    (gradient,) = torch.autograd.grad((found * weight).sum(), x)
    for index, k in enumerate(kept):
        part = x[index, :, :k].detach().requires_grad_()
        expected = F.layer_norm(part, (k,), norm.weight[:k], norm.bias[:k], norm.eps)
        torch.testing.assert_close(found[index, :, :k], expected)
        assert not found[index, :, k:].any()
        (one,) = torch.autograd.grad((expected * weight[index, :, :k]).sum(), part)
        torch.testing.assert_close(gradient[index, :, :k], one, atol=1e-6, rtol=1e-6)


def test_the_masked_norm_keeps_its_precision_in_bf16():
    mask = torch.ones(1, 1, 64)
    x = (100 + torch.randn(1, 8, 64)).to(torch.bfloat16)
    norm = MaskedLayerNorm(64)
    torch.testing.assert_close(norm(x, mask).float(), norm(x.float()), atol=2e-2, rtol=2e-2)


def test_removed_blocks_cost_nothing_and_change_nothing():
    removed = tuple((*part[:3], 0) if index == 2 else part for index, part in enumerate(DEFINITION))
    assert macs(removed) == macs(stripped(removed)) < macs(DEFINITION)
    assert len(stripped(removed)) == len(DEFINITION) - 1
    assert stripped([list(part) for part in DEFINITION]) == DEFINITION
    assert checked(((4, 8), *DEFINITION[1:]))[0] == (5, 8, 24)


def changed(position, part):
    return (*DEFINITION[:position], part, *DEFINITION[position + 1 :])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small()(torch.randn(1, 3, 56, 60)), r"x must have sides that are multiples of 56, got \(56, 60\)"),
        (lambda: small()(torch.randn(1, 3, 28, 28)), "multiples of 56"),
        (lambda: small()(torch.randn(1, 1, 56, 56)), r"shape \(batch, 3, height, width\), got \(1, 1, 56, 56\)"),
        (lambda: small(img_size=100), "img_size must have sides that are multiples of 56"),
        (lambda: small(patch=7, img_size=56), "patch must be even"),
        (lambda: small(distilled=True, patch_output=True), "patch_output must be False"),
        (lambda: ViTResNAS(), "definition or stages must be given"),
        (lambda: checked(()), "patches and a head at least"),
        (lambda: checked(changed(1, (7, 8))), r"definition\[1\] has an unknown type code"),
        (lambda: checked(changed(1, (1, (8, 2), (8, 16), 1))), r"definition\[1\] has a wrong number of entries"),
        (lambda: checked(changed(1, (1, (8, 0, 4), (8, 16), 1))), r"definition\[1\] must have sizes of at least 1"),
        (lambda: checked(changed(2, (1, (9, 2, 4), (9, 16), 1))), r"definition\[2\] must take the 8 channels"),
        (lambda: checked(changed(2, (1, (8, 2, 4), (9, 16), 1))), r"definition\[2\] must take the 8 channels"),
        (lambda: checked(changed(3, (3, 8, 4))), r"definition\[3\] must not reduce the channels: from 8 to 4"),
        (lambda: checked(changed(3, (0, 8))), r"definition\[3\] is out of place"),
        (lambda: checked(DEFINITION[:-1]), "is out of place"),
        (lambda: small().reset_classifier(3, "avg"), "global_pool must be 'token'"),
        (lambda: small().forward_intermediates(torch.randn(1, 3, 56, 56), output_fmt="NHWC"), "output_fmt must be"),
        (lambda: ResidualSpatialReduction(8, 4, (2, 2)), "dim_out must be at least dim_in, got 4 and 8"),
        (lambda: ResidualSpatialReduction(4, 8, (3, 2)), "grid must have even sides"),
        (lambda: ResidualSpatialReduction(4, 8, (2, 2))(torch.randn(1, 4, 4)), "1 \\+ 2 x 2 tokens, got 4"),
        (lambda: everyformer.create_model("vit_resnas_huge"), "vit_resnas_"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
