import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import everyformer
from everyformer.lab import images
from everyformer.papers.favit import Block, FactorizedSelfAttention, FaViT
from everyformer.papers.favit.model import VARIANTS, places

SMALL = {
    "num_classes": 5,
    "dims": (16, 16, 32, 48),
    "depths": (1, 1, 2, 1),
    "heads": (1, 1, 2, 2),
    "mlp_ratios": (2,) * 4,
}


def small(**options):
    torch.manual_seed(0)
    return FaViT(**{**SMALL, **options}).eval()


# Parameters and multiply-adds of the authors' code, and the G of its table: that count has norms and biases too.
@pytest.mark.parametrize(
    ("variant", "parameters", "multiply_adds", "published"),
    [
        ("favit_b0", 3_427_704, 632_135_696, 0.6),
        ("favit_b1", 12_958_568, 2_343_909_952, 2.4),
        ("favit_b2", 24_919_896, 4_457_599_040, 4.5),
        ("favit_b3", 48_746_440, 8_512_162_080, 8.5),
    ],
)
def test_parameters_and_multiply_adds_are_the_published_ones(variant, parameters, multiply_adds, published):
    with torch.device("meta"):
        model = FaViT(**VARIANTS[variant])
    assert sum(p.numel() for p in model.parameters()) == parameters
    # Only what the dilated windows hold is projected here, not the whole map.
    spared = 0
    for stage in (0, 1, 2):
        side, dim = 56 // 2**stage, VARIANTS[variant]["dims"][stage]
        held = len(places(side, 7, 8 // 2**stage, torch.device("cpu")))
        spared += VARIANTS[variant]["depths"][stage] * (side**2 - held**2) * (dim * 7 // 16) * (dim * 7 // 8)
        dense = len(places(side, 7, 1, torch.device("cpu")))
        assert dense == side
    assert images.macs(model) + spared == multiply_adds
    assert multiply_adds / 1e9 == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_in_both_registries(variant):
    assert timm.is_model(variant)
    assert variant in everyformer.list_models()
    model = timm.create_model(variant, num_classes=3, in_chans=1, drop_path_rate=0.1)
    assert model.default_cfg["input_size"] == (3, 224, 224)
    assert model.default_cfg["classifier"] == "head"
    assert model.get_submodule(model.default_cfg["first_conv"]).in_channels == 1
    assert max(m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath") == pytest.approx(0.1)
    model.reset_classifier(0)
    assert model.eval().forward_head(model.forward_features(torch.randn(1, 1, 64, 64))).shape == (1, model.num_features)
    assert everyformer.create_model(variant, num_classes=7).get_classifier().out_features == 7


def test_features_are_the_stages_normalised_maps():
    model = timm.create_model("favit_b0", features_only=True).eval()
    x = torch.randn(1, 3, 70, 97)
    for found, dim, stride in zip(model(x), model.feature_info.channels(), model.feature_info.reduction(), strict=True):
        assert found.shape == (1, dim, -(-70 // stride), -(-97 // stride))
        torch.testing.assert_close(found.mean(1), torch.zeros_like(found.mean(1)), atol=1e-5, rtol=0)
    assert len(timm.create_model("favit_b0", features_only=True, out_indices=(-1,))(x)) == 1


@settings(max_examples=12, deadline=None)
@given(st.integers(32, 150), st.integers(32, 150))
def test_any_size_from_the_total_stride_up(height, width):
    assert small()(torch.randn(1, 3, height, width)).isfinite().all()


def test_it_exports_compiles_runs_in_bf16_and_reloads_strictly():
    options = {"dims": (16, 24), "depths": (1, 1), "heads": (1, 3), "mlp_ratios": (2, 2), "reductions": (4, 1)}
    model, x = small(**options), torch.randn(2, 3, 45, 62)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    again = FaViT(**{**SMALL, **options})
    again.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(again.eval()(x), expected)
    assert model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


def test_gradients_reach_the_input_and_every_weight():
    model, x = small().train(), torch.randn(2, 3, 64, 64, requires_grad=True)
    model(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


def test_places_are_windows_continued_by_reflection():
    cpu = torch.device("cpu")
    assert places(6, 3, 1, cpu).tolist() == [0, 1, 2, 3, 4, 5]
    assert places(5, 3, 1, cpu).tolist() == [0, 1, 2, 3, 4, 3]
    assert places(8, 3, 2, cpu).tolist() == [0, 2, 4, 5, 7, 5]
    assert places(1, 3, 2, cpu).tolist() == [0, 0, 0]
    for length in range(4, 20):
        extent = 2 * 2 + 1
        row = torch.arange(float(length))[None, None, None]
        padded = F.pad(row, (0, -length % extent, 0, 0), mode="reflect")[0, 0, 0]
        assert places(length, 3, 2, cpu).tolist() == padded.unfold(0, extent, extent)[:, ::2].flatten().tolist()


def test_attention_is_its_definition():
    torch.manual_seed(0)
    heads, window, reduction, height, width = 2, 3, 2, 7, 8
    module = FactorizedSelfAttention(32, heads, reduction, window)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x = torch.randn(1, height, width, 32)
    query = module.query(x)[0].flatten(0, 1)

    def attend(query, key, value):
        return (query @ key.T / key.shape[1] ** 0.5).softmax(-1) @ value

    def detailed(value, rows, conv):  # values of keys on a grid, with what a depthwise convolution adds
        grid = value.T.unflatten(1, (rows, -1))[None]
        return value + F.conv2d(grid, conv.weight, conv.bias, padding=1, groups=grid.shape[1])[0].flatten(1).T

    coarse = F.conv2d(x[..., :4].permute(0, 3, 1, 2), module.coarse.reduce.weight, module.coarse.reduce.bias, 2)
    key, value = module.coarse.key_value(module.coarse.norm(coarse[0].flatten(1).T)).chunk(2, dim=1)
    outputs = [attend(query[:, :4], key, detailed(value, 3, module.coarse.detail))]

    fine = F.linear(module.neighbours(x[..., 4:]), module.project.weight, module.project.bias)[0]
    for index, (group, dilation) in enumerate(zip(module.groups, (1, reduction), strict=True)):
        rows, columns = (places(n, window, dilation, x.device).view(-1, window) for n in (height, width))
        values, parts = [], []
        for head in range(heads):
            channels = slice(14 * index + 7 * head, 14 * index + 7 * head + 7)
            keys = []
            for i in range(window):
                for j in range(window):
                    pairs = fine[rows[:, i]][:, columns[:, j], channels].flatten()  # (window, channel)
                    keys.append(torch.stack([run.mean() for run in pairs.split(len(pairs) // 7)]))
            key, value = group.key_value(group.across(torch.stack(keys))).chunk(2, dim=1)
            start = 4 + 14 * head + 7 * index  # each head's queries hold a part of both groups
            parts.append((query[:, start : start + 7], key))
            values.append(value)
        values = detailed(torch.cat(values, dim=1), window, group.detail).split(7, dim=1)
        outputs += [attend(*part, value) for part, value in zip(parts, values, strict=True)]
    expected = module.out(torch.cat(outputs, dim=1)).view_as(x[0])
    torch.testing.assert_close(module(x)[0], expected)


def test_every_token_sees_the_whole_map_and_keys_of_windows_do_not_grow_with_it():
    torch.manual_seed(0)
    module = FactorizedSelfAttention(16, 1, 4, 7)
    for size in (28, 40):
        x = torch.randn(1, size, size, 16, requires_grad=True)
        (gradient,) = torch.autograd.grad(module(x)[0, 3, 5].square().sum(), x)
        assert (gradient.abs().sum(-1) > 0).all()
    keys = []
    module.groups[0].across.register_forward_hook(lambda *call: keys.append(call[2].shape[2]))
    for size in (7, 28, 40):
        module(torch.randn(1, size, size, 16))
    assert keys == [49, 49, 49]


def test_a_block_keeps_the_shape():
    assert Block(16, 1, 2)(torch.randn(2, 5, 9, 16)).shape == (2, 5, 9, 16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small()(torch.randn(1, 3, 64, 31)), "at least 32 x 32 pixels, got \\(64, 31\\)"),
        (lambda: small()(torch.randn(1, 1, 64, 64)), "shape \\(batch, 3, height, width\\), got \\(1, 1, 64, 64\\)"),
        (lambda: small(depths=(1, 1)), "must be as many, got 4, 2, 4, 4, 4"),
        (lambda: small(dims=(16, 24, 32, 48)), "dim must be a multiple of 16 .* got dim=24"),
        (lambda: small(heads=(1, 2, 2, 2)), "7/8 of it in 2 x 2 heads, got dim=16"),
        (lambda: small().reset_classifier(3, "max"), "global_pool must be 'avg'"),
        (lambda: FactorizedSelfAttention(16, 1, 0), "reduction and window must be at least 1, got 1, 0, 7"),
        (
            lambda: FactorizedSelfAttention(16, 1, 4)(torch.randn(1, 8, 3, 16)),
            "at least 4 rows .*got \\(1, 8, 3, 16\\)",
        ),
        (lambda: FactorizedSelfAttention(16, 1)(torch.randn(1, 8, 8, 8)), "\\(batch, height, width, 16\\)"),
        (lambda: everyformer.create_model("favit_b9"), "favit_b"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
