"""Rectified flow, and few-step models by consistency distillation: losses, and an Euler sampler.

Rectified flow is the straight path from data to noise.

At noise level ``sigma`` an image is ``(1 - sigma) * image + sigma * noise``; a model learns the path's velocity
``noise - image``. Levels go from 0 (data) to 1 (noise) and a model is told ``1000 * sigma``, as by diffusers'
``FlowMatchEulerDiscreteScheduler``, so that one trained model serves both. Source: arXiv 2209.03003, equation 1.

Few-step models follow diffusers' ``LCMScheduler`` and ``TCDScheduler``: at timestep ``t`` an image is
``sqrt(a[t]) * image + sqrt(1 - a[t]) * noise`` with the scheduler's table ``a = alphas_cumprod``, and a model learns the
velocity ``sqrt(a[t]) * noise - sqrt(1 - a[t]) * image`` (``prediction_type="v_prediction"``; arXiv 2202.00512).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

TIMESTEPS = 1000.0
"""The timestep that stands for pure noise."""


def mix(
    images: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], sigmas: Float[Tensor, "batch"]
) -> Float[Tensor, "batch ..."]:
    """The point at ``sigmas`` on the straight path from ``images`` to ``noise``."""
    weight = sigmas.reshape(-1, *[1] * (images.dim() - 1))
    return (1 - weight) * images + weight * noise


def flow_matching_loss(
    model: Callable[..., Tensor],
    images: Float[Tensor, "batch ..."],
    labels: Int[Tensor, "batch"] | None = None,
    *,
    noise: Float[Tensor, "batch ..."],
    sigmas: Float[Tensor, "batch"],
) -> Float[Tensor, ""]:
    """Mean squared error of ``model(mixed, 1000 * sigmas, labels)`` against the velocity ``noise - images``.

    Noise and levels are arguments, so that held-out losses can be compared on the very same ones.
    Raises ``ValueError`` if shapes disagree. Source: arXiv 2209.03003, equation 1.
    """
    if noise.shape != images.shape:
        raise ValueError(f"noise must have the shape of images {tuple(images.shape)}, got {tuple(noise.shape)}")
    if sigmas.shape != images.shape[:1]:
        raise ValueError(f"sigmas must be (batch,) = ({len(images)},), got {tuple(sigmas.shape)}")
    velocity = model(mix(images, noise, sigmas), TIMESTEPS * sigmas, labels)
    return F.mse_loss(velocity, noise - images)


@torch.no_grad()
def sample(
    model: Callable[..., Tensor],
    noise: Float[Tensor, "batch ..."],
    labels: Int[Tensor, "batch"] | None = None,
    *,
    steps: int = 20,
) -> Float[Tensor, "batch ..."]:
    """Follow the model's velocity from ``noise`` to data in ``steps`` equal Euler steps.

    Raises ``ValueError`` if ``steps`` is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    images = noise
    for step in range(steps, 0, -1):
        timesteps = torch.full((len(noise),), TIMESTEPS * step / steps, device=noise.device, dtype=noise.dtype)
        images = images - model(images, timesteps, labels) / steps
    return images


class Point(NamedTuple):
    """Noisy images on the variance-preserving path, with the weights of image and of noise in them, broadcastable."""

    noisy: Float[Tensor, "batch ..."]
    signal: Float[Tensor, "batch ..."]
    spread: Float[Tensor, "batch ..."]

    def image(self, velocity: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The image that ``velocity`` says this is a noisy version of."""
        return self.signal * self.noisy - self.spread * velocity

    def noise(self, velocity: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The noise that ``velocity`` says is in this."""
        return self.spread * self.noisy + self.signal * velocity


def weights(
    timesteps: Int[Tensor, "batch"], like: Float[Tensor, "batch ..."], alphas_cumprod: Float[Tensor, "timesteps"]
) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, "batch ..."]]:
    """The weights of image and of noise at ``timesteps``; a timestep below zero is the image itself."""
    alpha = torch.where(timesteps < 0, 1.0, alphas_cumprod.to(timesteps.device)[timesteps.clamp(min=0)])
    alpha = alpha.reshape(-1, *[1] * (like.dim() - 1)).to(like.dtype)
    return alpha.sqrt(), (1 - alpha).sqrt()


def noised(
    images: Float[Tensor, "batch ..."],
    noise: Float[Tensor, "batch ..."],
    timesteps: Int[Tensor, "batch"],
    alphas_cumprod: Float[Tensor, "timesteps"],
) -> Point:
    """``images`` with ``noise`` at ``timesteps``.

    Raises ``ValueError`` if shapes disagree. Source: arXiv 2006.11239, equation 4.
    """
    if noise.shape != images.shape:
        raise ValueError(f"noise must have the shape of images {tuple(images.shape)}, got {tuple(noise.shape)}")
    if timesteps.shape != images.shape[:1]:
        raise ValueError(f"timesteps must be (batch,) = ({len(images)},), got {tuple(timesteps.shape)}")
    signal, spread = weights(timesteps, images, alphas_cumprod)
    return Point(signal * images + spread * noise, signal, spread)


def velocity_loss(
    model: Callable[..., Tensor],
    images: Float[Tensor, "batch ..."],
    labels: Int[Tensor, "batch"] | None = None,
    *,
    noise: Float[Tensor, "batch ..."],
    timesteps: Int[Tensor, "batch"],
    alphas_cumprod: Float[Tensor, "timesteps"],
) -> Float[Tensor, ""]:
    """Mean squared error of ``model(noisy, timesteps, labels)`` against the velocity (arXiv 2202.00512, appendix D)."""
    point = noised(images, noise, timesteps, alphas_cumprod)
    velocity = point.signal * noise - point.spread * images
    return F.mse_loss(model(point.noisy, timesteps.to(images.dtype), labels), velocity)


@torch.no_grad()
def path_end(
    model: Callable[..., Tensor],
    noisy: Float[Tensor, "batch ..."],
    labels: Int[Tensor, "batch"] | None = None,
    *,
    timesteps: Int[Tensor, "batch"],
    alphas_cumprod: Float[Tensor, "timesteps"],
    steps: int = 8,
) -> Float[Tensor, "batch ..."]:
    """The images where the model's deterministic path from ``noisy`` at ``timesteps`` ends, in equal DDIM steps.

    Source: arXiv 2010.02502, equation 12 with sigma 0.
    """
    images = noisy
    for step in range(steps, 0, -1):
        now, then = (
            ((timesteps + 1) * part // steps - 1).clamp(min=floor) for part, floor in ((step, 0), (step - 1, -1))
        )
        point = Point(images, *weights(now, images, alphas_cumprod))
        velocity = model(images, now.to(images.dtype), labels)
        signal, spread = weights(then, images, alphas_cumprod)
        images = signal * point.image(velocity) + spread * point.noise(velocity)
    return images


def consistency_loss(
    student: Callable[..., Tensor],
    teacher: Callable[..., Tensor],
    images: Float[Tensor, "batch ..."],
    labels: Int[Tensor, "batch"] | None = None,
    *,
    noise: Float[Tensor, "batch ..."],
    timesteps: Int[Tensor, "batch"],
    alphas_cumprod: Float[Tensor, "timesteps"],
    steps: int = 8,
) -> Float[Tensor, ""]:
    """Mean squared error of the images the student sees in noisy ones against the ends of the teacher's paths.

    A consistency function gives all points of a path the image at its end (arXiv 2303.01469, section 3). That end is
    computed here, by ``steps`` of the teacher, and not from the student's own image a little further on: it costs more
    for each image and needs far fewer of them.
    """
    point = noised(images, noise, timesteps, alphas_cumprod)
    target = path_end(teacher, point.noisy, labels, timesteps=timesteps, alphas_cumprod=alphas_cumprod, steps=steps)
    return F.mse_loss(point.image(student(point.noisy, timesteps.to(images.dtype), labels)), target)
