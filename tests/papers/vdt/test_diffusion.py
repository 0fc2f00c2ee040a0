import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.vdt import masked_diffusion_loss
from everyformer.papers.vdt.diffusion import linear_alphas


def drawn(batch=2, frames=3, channels=2, side=4):
    shape = (batch, frames, channels, side, side)
    return torch.rand(shape) * 2 - 1, torch.rand(batch, frames, side, side) < 0.5, torch.randn(shape)


def test_the_table_is_that_of_diffusers():
    torch.testing.assert_close(linear_alphas().float(), DDPMScheduler().alphas_cumprod, rtol=1e-5, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5),
    st.sampled_from(["epsilon", "v_prediction", "sample"]),
)  # fmt: skip
def test_a_model_that_knows_has_no_error_and_sees_given_places_clean(batch, frames, channels, side, prediction):
    video, mask, noise = drawn(batch, frames, channels, side)
    timesteps = torch.randint(1000, (batch,))
    scheduler = DDPMScheduler(prediction_type=prediction)
    answers = {"epsilon": noise, "v_prediction": scheduler.get_velocity(video, noise, timesteps), "sample": video}

    def knows(seen, times, labels):
        assert torch.equal(times, timesteps.float())
        kept = ~mask[:, :, None].expand_as(video)
        assert torch.equal(seen[kept], video[kept])
        torch.testing.assert_close(seen[~kept], scheduler.add_noise(video, noise, timesteps)[~kept])
        return answers[prediction]

    loss = masked_diffusion_loss(knows, video, mask, noise=noise, timesteps=timesteps, prediction=prediction)
    torch.testing.assert_close(loss.total, torch.zeros(batch), atol=1e-5, rtol=0)
    assert not loss.bound.any()


def test_errors_count_where_the_mask_is_true_and_are_divided_by_all():
    video, mask, noise = drawn()
    wrong = noise + torch.where(mask[:, :, None], 2.0, 100.0)
    loss = masked_diffusion_loss(lambda *_: wrong, video, mask, noise=noise, timesteps=torch.tensor([5, 900]))
    torch.testing.assert_close(loss.mse, 4 * mask.float().flatten(1).mean(1))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_bound_trains_the_variance_alone(prediction):
    video, mask, noise = drawn()
    output = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    timesteps = torch.tensor([0, 700])
    loss = masked_diffusion_loss(
        lambda *_: output, video, mask, noise=noise, timesteps=timesteps, prediction=prediction
    )  # fmt: skip
    torch.testing.assert_close(loss.total, loss.mse + loss.bound)
    (grad,) = torch.autograd.grad(loss.bound.sum(), output)
    assert not grad[:, :, :2].any()
    assert grad[:, :, 2:].any(dim=(1, 2, 3, 4)).all()


def test_the_bound_is_the_divergence_of_the_two_gaussians():
    video, mask, noise = drawn()
    timesteps = torch.tensor([40, 700])
    output = torch.cat([noise + 0.1, torch.full_like(noise, -1.0)], 2)  # the lower bound: the posterior's own variance
    loss = masked_diffusion_loss(lambda *_: output, video, mask, noise=noise, timesteps=timesteps)
    scheduler = DDPMScheduler(clip_sample=False)
    expected = []
    for timestep in timesteps.tolist():
        a, before = scheduler.alphas_cumprod[timestep], scheduler.alphas_cumprod[timestep - 1]
        beta = 1 - a / before
        apart = before.sqrt() * beta / (1 - a) * 0.1 * ((1 - a) / a).sqrt()
        expected.append(0.5 * apart**2 / (beta * (1 - before) / (1 - a)) / torch.log(torch.tensor(2.0)))
    torch.testing.assert_close(loss.bound, torch.stack(expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mask": torch.zeros(2, 3, 4, 4)},
            "mask must be boolean, true where to generate, and .* got .* of torch.float32",
        ),
        ({"mask": torch.zeros(2, 3, 4, 5, dtype=torch.bool)}, r"= \(2, 3, 4, 4\), got \(2, 3, 4, 5\)"),
        ({"noise": torch.zeros(2, 3, 1, 4, 4)}, "noise must have the shape of images"),
        ({"timesteps": torch.zeros(3, dtype=torch.long)}, r"timesteps must be \(batch,\) = \(2,\)"),
        (
            {"prediction": "velocity"},
            r"prediction must be one of \('epsilon', 'v_prediction', 'sample'\), got 'velocity'",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    video, mask, noise = drawn()
    arguments = {"mask": mask, "noise": noise, "timesteps": torch.zeros(2, dtype=torch.long), **change}
    with pytest.raises(ValueError, match=message):
        masked_diffusion_loss(lambda seen, *_: seen, video, **arguments)
