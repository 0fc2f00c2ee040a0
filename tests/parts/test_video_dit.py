import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from everyformer.parts.diffusion import flow_matching_loss
from everyformer.parts.video_dit import Rotary3D, VideoDiT, coordinates, rotate


def small(**options):
    return VideoDiT(**{"patch": 2, "channels": 1, "text_dim": 6, "dim": 24, "depth": 2, "heads": 2, **options})


def awake(model):
    """The model with its zeros replaced, so that every part of it shows in the output."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


@settings(max_examples=12, deadline=None)
@given(
    patch=st.sampled_from([1, 2]),
    frames=st.integers(1, 3),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    channels=st.integers(1, 2),
    words=st.integers(0, 3),
)
def test_any_size_maps_videos_to_videos(patch, frames, rows, columns, channels, words):
    model = awake(small(patch=patch, channels=channels, out_channels=3, text_dim=6 if words else 0))
    video = torch.randn(2, frames, channels, patch * rows, patch * columns)
    out = model(video, torch.rand(2) * 1000, torch.randn(2, words, 6) if words else None)
    assert out.shape == (2, frames, 3, patch * rows, patch * columns)
    assert out.isfinite().all()


def test_a_fresh_model_says_nothing_and_a_fresh_block_is_the_identity():
    model = small()
    x, condition, words = torch.randn(2, 8, 24), torch.randn(2, 24), torch.randn(2, 3, 6)
    rotary = model.rotary(coordinates((2, 2, 2)))
    assert torch.equal(model.blocks[0](x, condition, rotary, words), x)
    assert model(torch.randn(2, 2, 1, 4, 4), torch.tensor([0.0, 500.0]), words).abs().max() == 0


def test_patches_return_to_their_place():
    model = small(channels=3, dim=12, heads=1, text_dim=0)
    with torch.no_grad():
        model.embed.weight.copy_(torch.eye(12))
        model.final.weight.copy_(torch.eye(12))
    model.norm = nn.Identity()
    video = torch.randn(2, 3, 3, 6, 4)
    torch.testing.assert_close(model(video, torch.zeros(2)), video)


def test_rotated_products_depend_on_the_distance_in_each_direction_alone():
    rotary = Rotary3D(24, longest=50.0)
    q, k = torch.randn(2, 1, 1, 1, 24)

    def product(a, b):
        places = [rotary(torch.tensor([place])) for place in (a, b)]
        return (rotate(q, *places[0]) * rotate(k, *places[1])).sum()

    first = product((1, 2, 3), (4, 4, 4))
    torch.testing.assert_close(product((0, 7, 1), (3, 9, 2)), first)
    for other in ((5, 4, 4), (4, 5, 4), (4, 4, 5)):
        assert (product((1, 2, 3), other) - first).abs() > 1e-3
    torch.testing.assert_close(rotate(q, *rotary(torch.zeros(1, 3))), q)


def test_rotary_angles_agree_with_diffusers_wan():
    embeddings = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    theirs = embeddings.WanRotaryPosEmbed(20, (1, 2, 2), 16)(torch.zeros(1, 4, 3, 8, 6))
    ours = Rotary3D(20)(coordinates((3, 4, 3)))
    for table, own in zip(theirs, ours, strict=True):
        torch.testing.assert_close(table[0, :, 0, ::2], own, atol=1e-6, rtol=1e-5)


def test_every_token_sees_every_other_in_time_and_space_through_attention_alone():
    video, moved = torch.randn(1, 3, 1, 4, 4), torch.zeros(1, 3, 1, 4, 4)
    moved[0, 1, 0, 2, 3] = 1.0
    time, words = torch.tensor([300.0]), torch.randn(1, 3, 6)
    open_, closed = awake(small(patch=1)), awake(small(patch=1, attention=lambda head_dim: lambda q, k, v: v))
    assert (open_(video + moved, time, words) != open_(video, time, words)).all()
    changed = closed(video + moved, time, words) != closed(video, time, words)
    assert changed[0, 1, 0, 2, 3] and changed.sum() == 1


def test_the_order_of_frames_matters_and_that_of_words_does_not():
    model = awake(small())
    video, time, words = torch.randn(1, 3, 1, 4, 4), torch.tensor([300.0]), torch.randn(1, 4, 6)
    out = model(video, time, words)
    torch.testing.assert_close(model(video, time, words.flip(1)), out, atol=1e-5, rtol=1e-4)
    assert (model(video, time, words + 1) - out).abs().max() > 1e-3
    assert (model(video[:, [1, 0, 2]], time, words)[:, [1, 0, 2]] - out).abs().max() > 1e-3


def test_attention_is_called_once_per_block_and_may_be_a_module():
    class Scaled(nn.Module):
        def __init__(self, head_dim):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(head_dim))

        def forward(self, q, k, v):
            assert q.shape == k.shape == v.shape == (1, 2, 8, 12)
            return F.scaled_dot_product_attention(q, k, v) * self.gain

    model, plain = awake(small(attention=Scaled)), awake(small())
    state = model.state_dict()
    for index in range(2):
        state.pop(f"blocks.{index}.attention.attend.gain").fill_(1.0)
    plain.load_state_dict(state, strict=True)
    call = torch.randn(1, 2, 1, 4, 4), torch.tensor([300.0]), torch.randn(1, 3, 6)
    torch.testing.assert_close(model(*call), plain(*call))


def test_bfloat16_stays_near_float32_and_compiled_equals_eager():
    model = awake(small())
    video, time, words = torch.randn(2, 2, 1, 4, 4), torch.tensor([250.0, 750.0]), torch.randn(2, 3, 6)
    out = model(video, time, words)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(video, time, words), out)
    half = model.to(torch.bfloat16)(video.bfloat16(), time, words.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - out).norm() < 0.1 * out.norm()


def test_diffusers_scheduler_samples_it():
    diffusers = pytest.importorskip("diffusers")
    model = awake(small())
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    video, words = torch.randn(2, 2, 1, 4, 4), torch.randn(2, 3, 6)
    with torch.no_grad():
        for time in scheduler.timesteps:
            video = scheduler.step(model(video, time.expand(2), words), time, video).prev_sample
    assert video.shape == (2, 2, 1, 4, 4) and video.isfinite().all()


def test_a_small_model_learns_to_denoise_by_its_caption():
    model = small(dim=48, depth=1)
    words = torch.eye(6)[:2, None]
    videos = torch.stack([torch.full((2, 1, 4, 4), -1.0), torch.full((2, 1, 4, 4), 1.0)])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(80):
        which = torch.randint(2, (16,))
        noise = torch.randn(16, 2, 1, 4, 4)
        loss = flow_matching_loss(model, videos[which], words[which], noise=noise, sigmas=torch.rand(16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    with torch.no_grad():
        guess = model(torch.zeros(2, 2, 1, 4, 4), torch.tensor([900.0, 900.0]), words)
    assert (guess[0] > guess[1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "dim must be divisible by heads, got dim=24 and heads=5"),
        ({"heads": 6}, "head_dim must be even and at least 6 .* got 4"),
        ({"dim": 14}, "head_dim must be even and at least 6 .* got 7"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_inputs_that_do_not_fit_are_named():
    model, wordless = small(), small(text_dim=0)
    video, time, words = torch.randn(2, 2, 1, 4, 4), torch.zeros(2), torch.randn(2, 3, 6)
    for bad in (video[:, :, 0], video.expand(2, 2, 3, 4, 4)):
        with pytest.raises(ValueError, match="video must be"):
            model(bad, time, words)
    with pytest.raises(ValueError, match="divisible by patch=2, got"):
        model(video[..., :3], time, words)
    with pytest.raises(ValueError, match="timesteps must be"):
        model(video, time[:1], words)
    for call in (lambda: model(video, time), lambda: wordless(video, time, words)):
        with pytest.raises(ValueError, match="words must be given exactly if text_dim is not 0"):
            call()
    for bad in (words[:1], words[..., :5], words[0]):
        with pytest.raises(ValueError, match="words must be"):
            model(video, time, bad)
