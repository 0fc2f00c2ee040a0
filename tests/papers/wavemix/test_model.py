import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import everyformer
from everyformer.ops.dwt import reference
from everyformer.papers.wavemix import WaveMix, WaveMixBlock, WaveMixSegmenter, WaveMixUpscaler, focal_loss
from everyformer.papers.wavemix.model import VARIANTS, network_of

# Parameters of the published networks; those of the four small ones are in the paper's table.
PARAMETERS = {
    "wavemix_imagenet_28m": 27_857_608,
    "wavemix_imagenet_12m": 12_494_536,
    "wavemix_imagenet_49m": 49_416_808,
    "wavemix_imagenet_63m": 62_764_776,
    "wavemix_places365": 28_449_261,
    "wavemix_cifar10_s": 3_042_550,
    "wavemix_cifar10_l": 17_073_610,
    "wavemix_cifar100_s": 10_954_084,
    "wavemix_cifar100_l": 13_611_492,
    "wavemix_tiny_imagenet": 16_294_600,
    "wavemix_segmenter": 63_164_628,
    "wavemix_upscaler_x2": 1_944_867,
    "wavemix_lite_8_10": 3_566,
    "wavemix_lite_8_5": 7_156,
    "wavemix_lite_32_7": 37_058,
    "wavemix_lite_64_6": 520_106,
}


def small(levels=1, **options):
    return WaveMix(
        **{"num_classes": 5, "depth": 3, "dim": 8, "levels": levels, "stem": "strided", "stride": 1, **options}
    )


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameters_are_the_published_ones(variant):
    with torch.device("meta"):
        model = timm.create_model(variant)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_takes_its_own_input_in_timm(variant):
    with torch.device("meta"):
        model = timm.create_model(variant).eval()
        out = model(torch.randn(1, *model.default_cfg["input_size"]))
    side = model.default_cfg["input_size"][1]
    if isinstance(model, WaveMix):
        assert out.shape == (1, VARIANTS[variant]["num_classes"])
    else:
        assert out.shape == ((1, 20, side, side) if isinstance(model, WaveMixSegmenter) else (1, 3, 2 * side, 2 * side))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 2), st.integers(1, 2), st.sampled_from(["transposed", "bilinear", "nearest"]))
def test_a_block_keeps_the_shape_and_every_weight_learns(levels, rows, columns, upsample):
    block = WaveMixBlock(8, levels, upsample=upsample)
    x = torch.randn(2, 8, rows * 2**levels, columns * 2**levels, requires_grad=True)
    out = block(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_the_block_mixes_each_level_with_its_own_low_part_and_the_band_fastest():
    block, x = WaveMixBlock(8, 2).eval(), torch.randn(1, 8, 8, 8)
    reduced = block.reduce(x)
    low, (high,) = reference.haar2d(reduced)
    lower, (_, higher) = reference.haar2d(reduced, 2)
    coarse = block.mix[1](torch.cat([lower, higher.flatten(1, 2)], 1))
    expected = block.mix[0](torch.cat([low, high.flatten(1, 2), coarse], 1))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_timms_arguments_and_ways_in():
    model = timm.create_model("wavemix_lite_8_5", num_classes=3, in_chans=2, drop_path_rate=0.5)
    x = torch.randn(4, 2, 16, 24)
    model.train()(x).sum().backward()
    model.eval()
    features = model.forward_features(x)
    assert features.shape == (4, 8, 16, 24)
    torch.testing.assert_close(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (4, model.num_features)
    model.reset_classifier(7)
    assert model(x).shape == (4, 7)
    assert model.get_classifier().out_features == 7
    model.reset_classifier(0)
    assert model(x).shape == (4, 8)


def test_feature_maps_come_after_each_quarter_or_after_named_blocks():
    x = torch.randn(1, 1, 16, 16)
    model = timm.create_model("wavemix_lite_8_10", features_only=True)
    assert [tuple(level.shape) for level in model(x)] == [(1, 8, 16, 16)] * 4
    assert model.feature_info.reduction() == [1] * 4
    assert len(timm.create_model("wavemix_lite_8_10", features_only=True, out_indices=(0, 3))(x)) == 2
    whole = small(in_chans=1).eval()
    last, maps = whole.forward_intermediates(x, indices=[0, 2])
    torch.testing.assert_close(last, whole.forward_features(x))
    torch.testing.assert_close(maps[-1], last)
    with pytest.raises(ValueError, match="features_only must be False for wavemix_segmenter"):
        timm.create_model("wavemix_segmenter", features_only=True)


def test_weights_of_a_file_are_loaded_by_timm(tmp_path):
    from everyformer.papers.wavemix import checkpoint

    torch.manual_seed(1)
    theirs = timm.create_model("wavemix_lite_8_5")
    state = checkpoint.export(theirs)
    torch.save(state, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    model = timm.create_model("wavemix_lite_8_5", pretrained=True, pretrained_cfg_overlay=overlay)
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(model.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(
    ("build", "side"),
    [
        (lambda: WaveMix(5, 1, 8, 2, stem="patch", patch_size=2), 16),
        (lambda: small(depth=1, upsample="bilinear"), 6),
        (lambda: WaveMixSegmenter(4, 1, 8, 1), 16),
        (lambda: WaveMixUpscaler(1, 8), 6),
    ],
)
def test_it_exports_compiles_runs_in_bf16_and_reloads_strictly(build, side):
    model, x = build().eval(), torch.randn(2, 3, side, side)
    expected = model(x)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-4)
    again = build().eval()
    again.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(again(x), expected)
    assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_gradients_through_a_compiled_block_are_the_same():
    # In double precision: the true gradient of a bias before BatchNorm is zero, and in single only rounding is seen.
    block, x = WaveMixBlock(8, 1, dropout=0.0).double(), torch.randn(2, 8, 4, 4, dtype=torch.float64)
    weights = list(block.parameters())
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    both = [torch.autograd.grad(run(x).pow(3).sum(), weights) for run in (block, compiled)]
    for right, mine in zip(*both, strict=True):
        torch.testing.assert_close(mine, right, atol=1e-9, rtol=1e-9)


def test_dropped_paths_leave_the_mean_and_evaluation_alone():
    model, x = small(drop_path_rate=0.9), torch.randn(1, 3, 8, 8)
    assert model.drop_paths == [0.0, 0.45, 0.9]
    torch.testing.assert_close(model.eval()(x), model(x))


def test_segmenter_answers_at_any_size_that_the_blocks_take():
    model = WaveMixSegmenter(4, 1, 8, 1)
    assert model(torch.randn(2, 3, 15, 8)).shape == (2, 4, 15, 8)


def test_focal_loss_is_cross_entropy_at_zero_and_weighs_each_pixel():
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    torch.testing.assert_close(focal_loss(logits, target, gamma=0.0), F.cross_entropy(logits, target))
    chance = logits.softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(focal_loss(logits, target), ((1 - chance) ** 2 * -chance.log()).mean())
    target[0] = 255
    torch.testing.assert_close(focal_loss(logits, target), focal_loss(logits[1:], target[1:]))


def test_the_front_door_builds_them():
    assert isinstance(everyformer.create_model("wavemix", num_classes=3, depth=1, dim=8, levels=1), WaveMix)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WaveMixBlock(10), "dim must be a positive multiple of 4, got 10"),
        (lambda: WaveMixBlock(8, 5), "levels must be 1 to 4, got 5"),
        (lambda: WaveMixBlock(8, upsample="cubic"), "upsample must be transposed, bilinear or nearest"),
        (lambda: WaveMixBlock(8, ff_dim=4, upsample="nearest"), "ff_dim must be None"),
        (lambda: WaveMixBlock(8, 2)(torch.randn(1, 8, 6, 8)), "sides divisible by 4"),
        (lambda: small(stem="conv"), "stem must be patch or strided, got 'conv'"),
        (lambda: small(depth=0), "depth must be at least 1"),
        (lambda: small(drop_path_rate=1.0), r"drop_path_rate must be in \[0, 1\)"),
        (lambda: small().reset_classifier(3, "max"), "global_pool must be avg"),
        (
            lambda: small()(torch.randn(1, 1, 8, 8)),
            r"x must have shape \(batch, 3, height, width\), got \(1, 1, 8, 8\)",
        ),
        (lambda: small()(torch.randn(1, 3, 8, 7)), "width 7 does not fit.*the next that fits is 8"),
        (
            lambda: WaveMix(5, 1, 8, 3)(torch.randn(1, 3, 3, 32)),
            "height 3 does not fit: after the stem .stride 4. it must be whole and divisible by 8.*next that fits is 32",
        ),
        (lambda: WaveMixSegmenter(4, 1, 8, 1, stride=1), "must divide the picture by 4"),
    ],
)
def test_what_does_not_fit_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_unknown_variant_is_refused_and_each_has_a_class():
    with pytest.raises(RuntimeError, match="wavemix_of_tomorrow"):
        timm.create_model("wavemix_of_tomorrow")
    assert {network_of(variant) for variant in VARIANTS} == {WaveMix, WaveMixSegmenter, WaveMixUpscaler}
