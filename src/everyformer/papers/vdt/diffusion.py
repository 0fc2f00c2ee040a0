"""The masked denoising loss of VDT: noise and variance are learned where a video is to be generated.

Schedule and variance are DDPM's: linear betas over 1000 steps (arXiv 2006.11239) and a variance learned between its two
bounds (arXiv 2102.09672). The mask is in arXiv 2305.13311, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from everyformer.parts.diffusion import noised

Prediction = Literal["epsilon", "v_prediction", "sample"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


class Loss(NamedTuple):
    """Each video's loss, and its parts: error of the noise, and of the variance in bits (zero where it is not learned)."""

    total: Float[Tensor, "batch"]
    mse: Float[Tensor, "batch"]
    bound: Float[Tensor, "batch"]


def linear_alphas(steps: int = 1000) -> Float[Tensor, "steps"]:
    """The cumulative product of 1 - beta, beta rising in a line from 0.0001 to 0.02, in float64."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64), 0)


def masked_diffusion_loss(
    model: Callable[..., Tensor],
    video: Float[Tensor, "batch frames channels height width"],
    mask: Bool[Tensor, "batch frames height width"],
    labels: Int[Tensor, "batch"] | None = None,
    *,
    noise: Float[Tensor, "batch frames channels height width"],
    timesteps: Int[Tensor, "batch"],
    alphas_cumprod: Float[Tensor, "steps"] | None = None,
    prediction: Prediction = "epsilon",
) -> Loss:
    """What ``model`` misses of the noise, or of another ``prediction``, where ``mask`` is true; the rest it sees clean.

    The error counts where the mask is true and is divided by all elements, as the authors' is. A model that gives twice
    the channels has its variance trained by the variational bound, with the noise it predicts held fixed.

    Args:
        alphas_cumprod: of the schedule; :func:`linear_alphas` by default.
        prediction: what the model is to give, in diffusers' words: the noise, the velocity (arXiv 2202.00512), or the
            video itself.

    Raises:
        ValueError: shapes that disagree, a mask that is not boolean, an unknown prediction.
    """
    check_mask(mask, video)
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {PREDICTIONS}, got {prediction!r}")
    table = (linear_alphas() if alphas_cumprod is None else alphas_cumprod).to(video.device)
    point = noised(video, noise, timesteps, table)
    generated = mask[:, :, None]
    output = model(torch.where(generated, point.noisy, video), timesteps.to(video.dtype), labels)
    channels = video.shape[2]
    predicted, variance = output[:, :, :channels], output[:, :, channels:]

    target = {"epsilon": noise, "v_prediction": point.signal * noise - point.spread * video, "sample": video}[
        prediction
    ]
    mse = ((target - predicted) * generated).square().flatten(1).mean(1)
    if not variance.shape[2]:
        return Loss(mse, mse, torch.zeros_like(mse))
    fixed = predicted.detach()
    seen = {
        "epsilon": (point.noisy - point.spread * fixed) / point.signal,
        "v_prediction": point.image(fixed),
        "sample": fixed,
    }[prediction]
    bound = _bound(video, seen, variance, timesteps, table)
    return Loss(mse + bound, mse, bound)


def check_mask(mask: Tensor, video: Float[Tensor, "batch frames channels height width"]) -> None:
    """Raise the ``ValueError`` of a mask that does not fit the video or is not boolean."""
    expected = (*video.shape[:2], *video.shape[3:])
    if tuple(mask.shape) != expected or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be boolean, true where to generate, and (batch, frames, height, width) = {expected}, "
            f"got {tuple(mask.shape)} of {mask.dtype}"
        )


def _bound(video: Tensor, seen: Tensor, variance: Tensor, timesteps: Tensor, table: Tensor) -> Float[Tensor, "batch"]:
    """The variational bound in bits per element: how far the step from ``seen`` is from the step from ``video``."""
    before = torch.cat([table.new_ones(1), table[:-1]])
    beta = 1 - table / before
    spread = beta * (1 - before) / (1 - table)
    # The first step has no spread, so its logarithm is the second's.
    lower = torch.cat([spread[1:2], spread[1:]]).log()
    pull = beta * before.sqrt() / (1 - table)  # weight of the image in the mean of a step

    def at(values: Tensor) -> Tensor:
        return values[timesteps].to(video.dtype)[:, None, None, None, None]

    share = (variance + 1) / 2
    predicted = share * at(beta.log()) + (1 - share) * at(lower)
    apart = at(pull) * (video - seen)
    gap = at(lower) - predicted
    divergence = 0.5 * (-1 - gap + gap.exp() + apart.square() * (-predicted).exp())
    # The last step's mean is the image itself, which is compared as pixels of 256 levels.
    terms = torch.where(
        (timesteps == 0)[:, None, None, None, None], _pixel_surprise(video, seen, 0.5 * predicted), divergence
    )
    return terms.flatten(1).mean(1) / math.log(2.0)


def _pixel_surprise(video: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Minus the log likelihood (nats) of pixels of 256 levels in [-1, 1] under Gaussians (arXiv 2006.11239, eq. 13)."""

    def below(x: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    tight = (-log_scale).exp()
    upper, lower = below(tight * (video - mean + 1 / 255)), below(tight * (video - mean - 1 / 255))
    mass = torch.where(video < -0.999, upper, torch.where(video > 0.999, 1 - lower, upper - lower))
    return -mass.clamp(min=1e-12).log()
