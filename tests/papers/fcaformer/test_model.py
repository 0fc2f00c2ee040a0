import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import everyformer
from everyformer.lab import images
from everyformer.papers.fcaformer import FcaBlock, FcaFormer, ForwardCrossAttention
from everyformer.papers.fcaformer.model import VARIANTS, FcaStage, merged

SMALL = {"img_size": 64, "num_classes": 5, "dims": (8, 16, 24, 32), "depths": (1, 1, 3, 2), "heads": (0, 0, 3, 4)}
PLAIN = {"img_size": 64, "num_classes": 5, "dims": (24,), "depths": (3,), "heads": (3,), "patch": 16, "patches": True}


def small(**options):
    torch.manual_seed(0)
    # A start of the layer scale at which the branches count.
    return FcaFormer(**{**SMALL, "layer_scale": 0.5, **options}).eval()


# Parameters as the authors' code has them, multiply-adds in G as published.
@pytest.mark.parametrize(
    ("variant", "parameters", "published"),
    [
        ("fcaformer_l1", 6_187_560, 1.37),
        ("fcaformer_l2", 16_275_870, 3.6),
        ("fcaformer_l3", 27_894_484, 6.7),
        ("fcaformer_l4", 65_638_204, 14.5),
    ],
)
def test_parameters_and_multiply_adds_are_the_published_ones(variant, parameters, published):
    model = timm.create_model(variant)
    assert sum(p.numel() for p in model.parameters()) == parameters
    # The published count includes queries of the cross tokens, which nothing uses and which are not computed here.
    unused = sum(m.cross * m.dim**2 for m in model.modules() if isinstance(m, ForwardCrossAttention))
    digits = 2 if published < 2 else 1
    assert round((images.macs(model) + unused) / 1e9, digits) == published


def test_the_plain_variant_is_the_size_of_its_description():
    assert sum(p.numel() for p in timm.create_model("fcaformer_l0").parameters()) == 5_832_952


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_in_both_registries(variant):
    assert timm.is_model(variant)
    assert variant in everyformer.list_models()
    model = timm.create_model(variant, num_classes=3, in_chans=1, drop_path_rate=0.1)
    assert model.default_cfg["input_size"] == (3, 224, 224)
    assert model.default_cfg["classifier"] == "head"
    first = model.get_submodule(model.default_cfg["first_conv"])
    assert first.in_channels == 1
    assert max(m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath") == pytest.approx(0.1)
    model.reset_classifier(0)
    assert model.eval().forward_head(model.forward_features(torch.randn(1, 1, 64, 64))).shape == (1, model.num_features)
    assert everyformer.create_model(variant, num_classes=7).get_classifier().out_features == 7


@pytest.mark.parametrize("variant", ["fcaformer_l0", "fcaformer_l1"])
def test_features_are_the_stages_maps(variant):
    model = timm.create_model(variant, img_size=64, features_only=True)
    x = torch.randn(1, 3, 64, 96)
    for found, dim, stride in zip(model(x), model.feature_info.channels(), model.feature_info.reduction(), strict=True):
        assert found.shape == (1, dim, 64 // stride, 96 // stride)
    last = timm.create_model(variant, img_size=64, features_only=True, out_indices=(-1,))
    assert len(last(x)) == 1


@settings(max_examples=12, deadline=None)
@given(st.integers(32, 150), st.integers(32, 150))
def test_any_size_from_the_total_stride_up(height, width):
    assert small()(torch.randn(1, 3, height, width)).shape == (1, 5)


@pytest.mark.parametrize("options", [{"depths": (1, 1, 2, 1)}, {**PLAIN, "depths": (2,)}])
def test_it_exports_compiles_runs_in_bf16_and_reloads_strictly(options):
    model, x = small(**options), torch.randn(2, 3, 64, 64)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    again = FcaFormer(**{**SMALL, **options})
    again.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(again.eval()(x), expected)
    assert model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{}, PLAIN])
def test_gradients_reach_the_input_and_every_weight(options):
    model, x = small(**options).train(), torch.randn(2, 3, 64, 64, requires_grad=True)
    model(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


def test_attention_is_its_equation():
    torch.manual_seed(0)
    module = ForwardCrossAttention(dim=12, heads=3, grid=(2, 3), cross=4)
    for parameter in (module.bias, module.cross_bias, module.cross_scale):
        torch.nn.init.normal_(parameter)
    x, cross = torch.randn(2, 6, 12), torch.randn(2, 4, 12)
    calibrated = module.cross_norm(cross * module.cross_scale[:, None])
    query = module.qkv(x)[..., :12]
    key, value = module.qkv(torch.cat([x, calibrated], dim=1))[..., 12:].chunk(2, dim=-1)
    bias = torch.empty(3, 6, 10)
    for i in range(6):
        for j in range(6):
            bias[:, i, j] = module.bias[:, abs(i // 3 - j // 3) * 3 + abs(i % 3 - j % 3)]
        bias[:, i, 6:] = module.cross_bias
    heads = []
    for head, part in enumerate(slice(4 * h, 4 * h + 4) for h in range(3)):
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 2 + bias[head]
        heads.append(scores.softmax(-1) @ value[..., part])
    torch.testing.assert_close(module(x, cross), module.proj(torch.cat(heads, dim=-1)))


def test_later_blocks_see_cross_tokens_of_all_earlier_ones_or_of_the_last_few():
    def stage(memory):
        torch.manual_seed(0)
        options = {"mlp_ratio": 2.0, "layer_scale": 1.0, "memory": memory}
        return FcaStage(None, 8, 2, (5, 8), [0.0] * 4, **options).eval()

    assert merged((5, 8)) == 4
    assert [block.attention.cross for block in stage(12).blocks] == [0, 4, 8, 12]
    assert [block.attention.cross for block in stage(2).blocks] == [0, 4, 8, 8]
    assert [block.merge is None for block in stage(0).blocks] == [True] * 4
    model, x = stage(12), torch.randn(1, 8, 5, 8)
    before = model(x)
    torch.nn.init.normal_(model.blocks[0].merge.weight)
    assert not torch.allclose(model(x), before)


def test_a_block_gives_a_map_and_its_merged_tokens():
    made = FcaBlock(8, 2, (8, 8))(torch.randn(2, 8, 8, 8))
    assert [tuple(t.shape) for t in made] == [(2, 8, 8, 8), (2, 4, 8)]
    assert FcaBlock(8, 2, (8, 8), merge=False)(torch.randn(2, 8, 8, 8))[1] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small()(torch.randn(1, 3, 64, 31)), "at least 32 x 32 pixels, got \\(64, 31\\)"),
        (lambda: small()(torch.randn(1, 1, 64, 64)), "shape \\(batch, 3, height, width\\), got \\(1, 1, 64, 64\\)"),
        (lambda: small(img_size=16), "img_size must be at least the total stride 32"),
        (lambda: small(depths=(1, 1)), "dims, depths and heads must be as many"),
        (lambda: small(memory=-1), "memory must be at least 0"),
        (lambda: small(heads=(0, 0, 5, 4)), "dim must be a multiple of heads, got dim=24 and heads=5"),
        (lambda: small(patch=8), "patch must be 2 or 4"),
        (lambda: small().reset_classifier(3, "max"), "global_pool must be 'avg'"),
        (lambda: ForwardCrossAttention(8, 2, (2, 2))(torch.randn(1, 5, 8)), "must hold 4 and 0 tokens, got 5 and 0"),
        (lambda: ForwardCrossAttention(8, 2, (0, 2)), "grid must be at least"),
        (lambda: everyformer.create_model("fcaformer_l9"), "fcaformer_l"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
