import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from everyformer.parts import diffusion
from everyformer.parts.dit import DiT, SelfAttention, grid_positions, sinusoids


def small(**options: object) -> DiT:
    settings = {"image_size": 8, "patch": 2, "channels": 1, "dim": 16, "depth": 2, "heads": 2, "classes": 10}
    return DiT(**{**settings, **options})  # type: ignore[arg-type]


def awake(model: DiT) -> DiT:
    """The model with its zeros replaced, so that every part of it shows in the output."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def test_xl_2_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = DiT(image_size=32, patch=2, channels=4, out_channels=8, dim=1152, depth=28, heads=16, classes=1000)
    # The published count, 675,129,632, holds the fixed positions too.
    assert sum(p.numel() for p in model.parameters()) + model.positions.numel() == 675_129_632


@settings(max_examples=12, deadline=None)
@given(
    patch=st.sampled_from([1, 2, 4]),
    side=st.integers(1, 4),
    channels=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 3),
    classes=st.sampled_from([0, 5]),
)
def test_any_size_maps_images_to_images(patch, side, channels, heads, batch, classes):
    size = patch * side
    model = awake(small(image_size=size, patch=patch, channels=channels, heads=heads, classes=classes, out_channels=2))
    out = model(torch.randn(batch, channels, size, size), torch.rand(batch) * 1000)
    assert out.shape == (batch, 2, size, size)
    assert out.isfinite().all()


def test_a_fresh_model_says_nothing_and_a_fresh_block_is_the_identity():
    model = small()
    x, condition = torch.randn(2, 16, 16), torch.randn(2, 16)
    assert torch.equal(model.blocks[0](x, condition), x)
    assert model(torch.randn(2, 1, 8, 8), torch.tensor([0.0, 500.0])).abs().max() == 0


def test_patches_return_to_their_place():
    """With the transformer silenced and patches copied through, the image comes back."""
    model = small(image_size=8, patch=2, channels=3, dim=12, heads=2)
    with torch.no_grad():
        model.embed.weight.copy_(torch.eye(12))
        model.positions.zero_()
        model.final.weight.copy_(torch.eye(12))
        model.norm = nn.Identity()
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(images, torch.zeros(2)), images)


def test_every_token_sees_every_other_and_only_through_attention():
    images, moved = torch.randn(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    moved[..., 0, 0] = 1.0
    time = torch.tensor([300.0])
    open_, closed = awake(small(patch=1)), awake(small(patch=1, attention=lambda head_dim: lambda q, k, v: v))
    changed = (open_(images + moved, time) - open_(images, time)).abs() > 0
    assert changed.all()
    changed = (closed(images + moved, time) - closed(images, time)).abs() > 0
    assert changed[..., 0, 0].all() and changed.sum() == 1


def test_attention_is_called_once_per_block_with_the_head_dimension():
    asked, shapes = [], []

    def attention(head_dim: int):
        asked.append(head_dim)

        def attend(q, k, v):
            shapes.append(tuple(q.shape))
            return F.scaled_dot_product_attention(q, k, v)

        return attend

    torch.manual_seed(1)
    model = awake(small(attention=attention))
    torch.manual_seed(1)
    plain = awake(small())
    images, time, labels = torch.randn(3, 1, 8, 8), torch.rand(3) * 1000, torch.tensor([1, 2, 3])
    torch.testing.assert_close(model(images, time, labels), plain(images, time, labels))
    assert asked == [8, 8] and shapes == [(3, 2, 16, 8)] * 2


def test_a_module_as_attention_belongs_to_the_model():
    class Scaled(nn.Module):
        def __init__(self, head_dim: int) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(head_dim))

        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v) * self.gain

    model = awake(small(attention=Scaled))
    model(torch.randn(1, 1, 8, 8), torch.tensor([10.0])).square().mean().backward()
    assert model.blocks[0].attention.attend.gain.grad.abs().sum() > 0
    assert "blocks.1.attention.attend.gain" in model.state_dict()


def test_no_label_means_the_class_none():
    model = awake(small())
    images, time = torch.randn(2, 1, 8, 8), torch.tensor([100.0, 900.0])
    torch.testing.assert_close(model(images, time), model(images, time, torch.tensor([10, 10])))
    assert (model(images, time) - model(images, time, torch.tensor([3, 3]))).abs().max() > 1e-3


def test_state_dict_round_trips_strictly_and_holds_no_positions():
    model = awake(small())
    twin = small()
    twin.load_state_dict(model.state_dict(), strict=True)
    images, time = torch.randn(2, 1, 8, 8), torch.rand(2) * 1000
    torch.testing.assert_close(twin(images, time), model(images, time))
    assert not [name for name in model.state_dict() if "positions" in name]


def test_bfloat16_stays_near_float32():
    model = awake(small())
    images, time = torch.randn(2, 1, 8, 8), torch.tensor([250.0, 750.0])
    out = model(images, time)
    half = model.to(torch.bfloat16)(images.bfloat16(), time)
    assert half.dtype == torch.bfloat16
    assert (half.float() - out).norm() < 0.1 * out.norm()


def test_compiled_equals_eager():
    model = awake(small())
    images, time, labels = torch.randn(2, 1, 8, 8), torch.tensor([250.0, 750.0]), torch.tensor([4, 7])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, time, labels), model(images, time, labels))


def test_positions_are_different_for_every_cell_and_agree_with_the_formula():
    positions = grid_positions(6, 16)
    assert positions.shape == (36, 16)
    assert torch.cdist(positions, positions)[~torch.eye(36, dtype=torch.bool)].min() > 0.1
    # Cell (row 2, column 3): columns in the first half, rows in the second; frequencies 1, 10, 100, 1000 of 1 / 10000.
    rates = torch.tensor([1.0, 1e-1, 1e-2, 1e-3])
    expected = torch.cat([(3 * rates).cos(), (3 * rates).sin(), (2 * rates).cos(), (2 * rates).sin()])
    torch.testing.assert_close(positions[2 * 6 + 3], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 9}, "image_size must be divisible by patch"),
        ({"heads": 3}, "dim must be divisible by heads"),
        ({"dim": 18, "heads": 2}, "dim must be divisible by 4"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_inputs_that_do_not_fit_are_named():
    model = small(classes=0)
    with pytest.raises(ValueError, match="images must be"):
        model(torch.randn(1, 3, 8, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="timesteps must be"):
        model(torch.randn(2, 1, 8, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="classes=0"):
        model(torch.randn(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="dim must be even"):
        sinusoids(torch.zeros(1), 3)
    with pytest.raises(ValueError, match="heads=5"):
        SelfAttention(16, heads=5)


def test_flow_matching_loss_is_zero_for_the_true_velocity_and_counts_errors():
    images, noise, sigmas = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.rand(4)
    seen = {}

    def model(mixed, timesteps, labels):
        seen.update(mixed=mixed, timesteps=timesteps)
        return noise - images + 2.0

    loss = diffusion.flow_matching_loss(model, images, noise=noise, sigmas=sigmas)
    torch.testing.assert_close(loss, torch.tensor(4.0))
    torch.testing.assert_close(seen["timesteps"], 1000 * sigmas)
    weight = sigmas[:, None, None, None]
    torch.testing.assert_close(seen["mixed"], images * (1 - weight) + noise * weight)
    with pytest.raises(ValueError, match="noise must have the shape"):
        diffusion.flow_matching_loss(model, images, noise=noise[:2], sigmas=sigmas)
    with pytest.raises(ValueError, match="sigmas must be"):
        diffusion.flow_matching_loss(model, images, noise=noise, sigmas=sigmas[:2])


def test_sampling_along_the_true_velocity_arrives_at_the_data():
    images, noise = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    for steps in (1, 7):
        out = diffusion.sample(lambda x, t, y: noise - images, noise, steps=steps)
        torch.testing.assert_close(out, images)
    with pytest.raises(ValueError, match="steps must be"):
        diffusion.sample(lambda x, t, y: x, noise, steps=0)


def test_sampling_takes_the_steps_of_diffusers_scheduler():
    diffusers = pytest.importorskip("diffusers")
    model = awake(small())
    noise, labels, steps = torch.randn(2, 1, 8, 8), torch.tensor([3, 8]), 5
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)])
    x = noise
    with torch.no_grad():
        for time in scheduler.timesteps:
            x = scheduler.step(model(x, time.expand(2), labels), time, x).prev_sample
    torch.testing.assert_close(diffusion.sample(model, noise, labels, steps=steps), x, rtol=1e-4, atol=1e-5)


def test_a_small_model_learns_to_denoise():
    model = small(dim=32, depth=1)
    images = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).expand(16, -1, -1, -1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        noise, sigmas = torch.randn_like(images), torch.rand(16)
        loss = diffusion.flow_matching_loss(model, images, noise=noise, sigmas=sigmas)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
