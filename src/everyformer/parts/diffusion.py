"""Rectified flow: the straight path from data to noise, its training loss, and an Euler sampler.

At noise level ``sigma`` an image is ``(1 - sigma) * image + sigma * noise``; a model learns the path's velocity
``noise - image``. Levels go from 0 (data) to 1 (noise) and a model is told ``1000 * sigma``, as by diffusers'
``FlowMatchEulerDiscreteScheduler``, so that one trained model serves both. Source: arXiv 2209.03003, equation 1.
"""

from __future__ import annotations

from collections.abc import Callable

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
