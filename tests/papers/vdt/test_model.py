import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer import create_model
from everyformer.papers.vdt import VDT, vdt_l_2, vdt_s_2

SIZES = {"image_size": 8, "patch": 4, "channels": 2, "frames": 4, "dim": 16, "depth": 2, "heads": 2}


def built(**options):
    model = VDT(**{**SIZES, **options}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3), frames=st.integers(1, 5), side=st.integers(1, 3), patch=st.integers(1, 3),
    channels=st.integers(1, 3), sigma=st.booleans(), classes=st.integers(0, 2), temporal=st.booleans(),
)  # fmt: skip
def test_a_video_goes_in_and_one_comes_out(batch, frames, side, patch, channels, sigma, classes, temporal):
    size = side * patch
    model = VDT(
        image_size=size, patch=patch, channels=channels, frames=frames, dim=8, depth=1, heads=2,
        learn_sigma=sigma, classes=classes, temporal=temporal,
    )  # fmt: skip
    video, times = torch.randn(batch, frames, channels, size, size), torch.rand(batch) * 1000
    labels = torch.zeros(batch, dtype=torch.long) if classes else None
    output = model(video, times, labels)
    assert output.shape == (batch, frames, channels * (1 + sigma), size, size)
    assert not output.any()  # the last layer starts at zero


def test_a_frame_sees_the_others_only_through_attention_over_time():
    video, times = torch.randn(1, 4, 2, 8, 8, requires_grad=True), torch.full((1,), 300.0)
    for temporal in (True, False):
        output = built(temporal=temporal)(video, times)
        (seen,) = torch.autograd.grad(output[:, 2].square().sum(), video)
        touched = [bool(seen[:, frame].any()) for frame in range(4)]
        assert touched == ([True] * 4 if temporal else [False, False, True, False])


def test_attention_over_time_keeps_to_its_place_and_frames_know_their_number():
    model = built(depth=1)
    block = model.blocks[0]
    torch.nn.init.zeros_(block.adaptive[1].weight)
    torch.nn.init.zeros_(block.adaptive[1].bias)  # the gates are shut: what is left is the attention over time
    x = torch.randn(1, 4, 5, 16, requires_grad=True)
    (seen,) = torch.autograd.grad(block(x, torch.randn(1, 16))[:, :, 3].square().sum(), x)
    assert seen[:, :, 3].any()
    assert not seen[:, :, [0, 1, 2, 4]].any()
    assert not torch.allclose(model(torch.zeros(1, 4, 2, 8, 8), torch.zeros(1))[:, 0],
                              model(torch.zeros(1, 4, 2, 8, 8), torch.zeros(1))[:, 1])  # fmt: skip


def test_labels_steer_and_training_drops_some_of_them():
    model = built(classes=3)
    video, times = torch.randn(8, 4, 2, 8, 8), torch.full((8,), 300.0)
    none, zero = torch.full((8,), 3), torch.zeros(8, dtype=torch.long)
    assert torch.equal(model(video, times), model(video, times, none))
    assert not torch.allclose(model(video, times, zero), model(video, times, none))
    single = built(classes=1)
    assert torch.equal(single(video, times), single(video, times, zero))
    dropping = built(classes=3, label_dropout=0.5).train()
    torch.manual_seed(1)
    kept = dropping(video, times, zero)
    dropping.eval()
    expected = {name: dropping(video, times, labels) for name, labels in (("kept", zero), ("dropped", none))}
    found = ["kept" if torch.allclose(kept[i], expected["kept"][i], atol=1e-5) else "dropped" for i in range(8)]
    assert set(found) == {"kept", "dropped"}
    for i, name in enumerate(found):
        torch.testing.assert_close(kept[i], expected[name][i])


def test_published_sizes():
    for build, millions in ((vdt_s_2, 41.47), (vdt_l_2, 860.0)):
        with torch.device("meta"):
            model = build(classes=1)
        assert sum(tensor.numel() for tensor in model.state_dict().values()) / 1e6 == pytest.approx(millions, rel=1e-3)
    with torch.device("meta"):
        assert isinstance(create_model("vdt_s_2", frames=8), VDT)


def test_it_compiles_and_its_state_goes_round():
    model = built(classes=1)
    video, times = torch.randn(2, 4, 2, 8, 8), torch.full((2,), 10.0)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(video, times), model(video, times))
    again = VDT(**model.options).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again(video, times), model(video, times))


def test_bf16_is_near_float32():
    model = built()
    video, times = torch.randn(2, 4, 2, 8, 8), torch.full((2,), 10.0)
    expected = model(video, times)
    found = model.bfloat16()(video.bfloat16(), times)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 9}, "image_size must be divisible by patch, got image_size=9 and patch=4"),
        ({"dim": 18}, "dim must be divisible by 4 for positions in two dimensions, got 18"),
        ({"heads": 3}, "dim must be divisible by heads, got dim=16 and heads=3"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"label_dropout": 1.0}, r"label_dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VDT(**{**SIZES, **options})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (((2, 3, 2, 8, 8), (2,), None), r"video must be \(batch, 4, 2, 8, 8\), got \(2, 3, 2, 8, 8\)"),
        (((2, 4, 2, 8, 8), (1,), None), r"timesteps must be \(batch,\) = \(2,\), got \(1,\)"),
        (((2, 4, 2, 8, 8), (2,), (2,)), "labels were given, but the model was built with classes=0"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, message):
    video, times, labels = inputs
    with pytest.raises(ValueError, match=message):
        built()(torch.zeros(video), torch.zeros(times), labels and torch.zeros(labels, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels must be \(batch,\) = \(2,\), got \(3,\)"):
        built(classes=2)(torch.zeros(2, 4, 2, 8, 8), torch.zeros(2), torch.zeros(3, dtype=torch.long))
