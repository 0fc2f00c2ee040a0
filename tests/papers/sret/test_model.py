import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import everyformer
from everyformer.lab import images
from everyformer.papers.sret.model import (
    VARIANTS,
    Block,
    NonLinearProjection,
    Recursive,
    SlicedAttention,
    SReT,
    create,
    fixed_permutation,
    soft_distillation_loss,
)

# The authors' README: parameters exactly, multiply-adds to the two digits given there.
TABLE = {
    "sret_t": (4_755_979, 1.1),
    "sret_t_unsliced": (4_755_979, 1.4),
    "sret_t_unsliced_384": (4_853_259, 6.4),
    "sret_lt": (4_988_024, 1.2),
    "sret_lt_16_14_1": (4_988_024, 1.2),
    "sret_lt_unsliced": (4_988_024, 1.4),
    "sret_s": (20_899_692, 4.2),
    "sret_s_unsliced": (20_899_692, 4.7),
    "sret_s_unsliced_384": (21_091_212, 18.5),
    "sret_s_unsliced_512": (21_317_004, 42.8),
}


def small(**options):
    sizes = {"img_size": 64, "base_dim": 8, "heads": (1, 2, 4), "num_classes": 5}
    return SReT(**{**sizes, **options}).eval()


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_multiply_adds_are_the_papers(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    parameters, billions = TABLE[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    counted = images.macs(model, VARIANTS[name].get("img_size", 224)) / 1e9
    assert counted == pytest.approx(billions, abs=0.051, rel=0.004)


def test_every_variant_is_registered_and_listed():
    assert set(TABLE) == set(VARIANTS)
    for name in VARIANTS:
        assert timm.is_model(name)
        assert name in everyformer.list_models()
    assert isinstance(everyformer.create_model("sret_t", num_classes=3), SReT)
    assert create("sret_t").default_cfg["classifier"] == "head"


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(1, 4), st.integers(0, 2))
def test_sliced_attention_is_attention_inside_each_group(batch, groups, length, loop):
    layer = SlicedAttention(8, 2, groups, permutation="fixed")
    x = torch.randn(batch, groups * length, 8)
    whole = SlicedAttention(8, 2)
    whole.load_state_dict(layer.state_dict())
    order = torch.tensor(fixed_permutation(groups * length)) if loop and groups > 1 else torch.arange(groups * length)
    expected = torch.empty_like(x)
    expected[:, order] = torch.cat([whole(run) for run in x[:, order].split(length, dim=1)], dim=1)
    torch.testing.assert_close(layer(x, loop), expected)


def test_permutations_are_random_in_training_and_fixed_in_evaluation():
    x = torch.randn(1, 16, 8)
    layer = SlicedAttention(8, 2, (4, 4))
    assert not torch.equal(layer(x, 1), layer(x, 1))
    assert torch.equal(layer.eval()(x, 1), layer(x, 1))
    always = SlicedAttention(8, 2, (4, 4), permutation="random").eval()
    assert not torch.equal(always(x, 1), always(x, 1))
    given_order = SlicedAttention(8, 2, (4, 4), permutation=lambda tokens: torch.arange(tokens))
    torch.testing.assert_close(given_order(x, 1), given_order(x, 0))


def test_with_one_group_everywhere_sliced_is_whole():
    whole, x = small(groups=None), torch.randn(2, 3, 64, 64)
    sliced = small(groups=((1, 1, 1), (1, 1, 1)))
    sliced.load_state_dict(whole.state_dict())
    torch.testing.assert_close(sliced(x), whole(x), rtol=0, atol=0)


def test_recursive_is_the_block_again_with_a_module_between():
    block, between = nn.Linear(4, 4), [nn.Linear(4, 4), nn.Linear(4, 4)]
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(Recursive(block, 2, between)(x), between[1](block(between[0](block(x)))))
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    looped = Recursive(layer, loops=5)
    assert looped(torch.randn(2, 3, 8)).shape == (2, 3, 8)
    assert sum(p.numel() for p in looped.parameters()) == sum(p.numel() for p in layer.parameters())


def test_blocks_begin_as_plain_pre_norm_blocks():
    block = Block(8, 2)
    plain = Block(8, 2, coefficients=False)
    plain.load_state_dict({key: value for key, value in block.state_dict().items() if "residual" not in key})
    x = torch.randn(2, 6, 8)
    torch.testing.assert_close(block(x), plain(x))
    assert NonLinearProjection(8, 2.0)(x).shape == x.shape


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (32, 32)])
def test_other_sizes_and_gradients_everywhere(size):
    model, x = small().train(), torch.randn(2, 3, *size, requires_grad=True)
    out = model(x)
    assert out.shape == (2, 5)
    out.square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_unsliced_model_takes_any_size():
    assert small(groups=None)(torch.randn(1, 3, 70, 45)).shape == (1, 5)


@pytest.mark.parametrize("groups", [None, ((8, 4, 1), (2, 1, 1))])
def test_it_compiles_exports_runs_in_bf16_and_reloads_strictly(groups):
    options = {"groups": groups, "depths": (2, 2, 2), "blocks": (1, 1, 1)}
    model, x = small(**options), torch.randn(2, 3, 64, 64)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    again = small(**options)
    again.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(again(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x).float(), expected, atol=0.1, rtol=0.1)
    assert model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


def test_features_heads_and_channels_like_timms():
    options = {"img_size": 64, "base_dim": 8, "in_chans": 2, "drop_path_rate": 0.1}
    x = torch.randn(2, 2, 64, 64)
    features = timm.create_model("sret_t", features_only=True, **options).eval()
    assert [tuple(map.shape) for map in features(x)] == [(2, 16, 8, 8), (2, 32, 4, 4), (2, 64, 2, 2)]
    assert features.feature_info.reduction() == [8, 16, 32]
    assert features.feature_info.channels() == [16, 32, 64]
    first = timm.create_model("sret_t", features_only=True, out_indices=(0,), **options)
    assert [tuple(map.shape) for map in first(x)] == [(2, 16, 8, 8)]

    model = timm.create_model("sret_t", num_classes=7, **options).eval()
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(model.get_classifier()(pooled), model(x))
    last, found = model.forward_intermediates(x)
    assert len(found) == 3 and torch.equal(last, found[-1])
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    rates = [block.block.drop_path.drop_prob for block in model.stages[1]]
    assert rates == pytest.approx([0.1 * index / 19 for index in range(4, 9)])


def test_soft_distillation_is_the_divergence_and_the_teachers_entropy():
    student, teacher = torch.randn(2, 6, 9)
    soft = (teacher / 2).softmax(-1)
    expected = -(soft * (student / 2).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(soft_distillation_loss(student, teacher, 2.0), expected)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        soft_distillation_loss(student, teacher, 0.0)
    with pytest.raises(ValueError, match="teacher must be shaped like student"):
        soft_distillation_loss(student, teacher[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (4, 10, 5)}, r"depths must be multiples of blocks, got depths=\(4, 10, 5\)"),
        ({"depths": (4, 10)}, "depths and blocks must have 3 stages"),
        ({"heads": (2, 3, 6)}, "each stage's width must be a multiple"),
        ({"base_dim": 7, "heads": (1, 2, 4)}, "first stage's width must be even"),
        ({"groups": ((8, 4, 1),)}, "groups must have one entry per loop, got 1 for 2"),
        ({"groups": ((8, 4), (2, 1))}, "groups must name 3 stages"),
        ({"groups": ((0, 4, 1), (2, 1, 1))}, "groups must be at least 1"),
        ({"stem_strides": (2, 2)}, "stem_strides must hold three"),
        ({"permutation": "sorted"}, "permutation must be one of training, random, fixed"),
    ],
)
def test_settings_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_inputs_and_names_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="at least 32 pixels"):
        small()(torch.randn(1, 3, 64, 16))
    with pytest.raises(ValueError, match=r"shape \(batch, 3, height, width\), got \(1, 4, 64, 64\)"):
        small()(torch.randn(1, 4, 64, 64))
    with pytest.raises(ValueError, match="81 tokens and 8 groups"):
        small()(torch.randn(1, 3, 72, 72))
    with pytest.raises(ValueError, match="name must be one of sret_t"):
        create("sret_xl")
    with pytest.raises(ValueError, match="pretrained must be False"):
        create("sret_t", pretrained=True)
    with pytest.raises(ValueError, match="dim must be a multiple of heads"):
        SlicedAttention(9, 2)
    with pytest.raises(ValueError, match="loops must be at least 1"):
        Recursive(nn.Identity(), 0)
    with pytest.raises(ValueError, match="one module per loop, got 1 for 2"):
        Recursive(nn.Identity(), 2, [nn.Identity()])
    with pytest.raises(ValueError, match="output_fmt"):
        small().forward_intermediates(torch.randn(1, 3, 64, 64), output_fmt="NLC")
    with pytest.raises(ValueError, match="norm must be False"):
        small().forward_intermediates(torch.randn(1, 3, 64, 64), norm=True)
    with pytest.raises(ValueError, match="global_pool"):
        small().reset_classifier(3, "max")
