"""How far predicted videos are from the true ones, by the rules of OpenSTL (arXiv 2306.11249), as its tables have it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

NAMES = ("mse", "mae", "rmse", "psnr", "ssim")
# What the SSIM of OpenSTL's tables takes for the range of data in [0, 1]: scikit-image's for any floats.
LITERATURE_RANGE = 2.0
WINDOW = 7


def video(
    predicted: Float[Tensor, "batch frames channels height width"],
    true: Float[Tensor, "batch frames channels height width"],
    names: Sequence[str] = NAMES,
    *,
    data_range: float = 1.0,
    spatial_norm: bool = False,
    mean: Tensor | float = 0.0,
    std: Tensor | float = 1.0,
) -> dict[str, float]:
    """Errors summed over a frame's pixels and averaged over frames, and likenesses of frames clipped to [0, 1].

    Args:
        names: which of ``mse``, ``mae``, ``rmse`` (the root of ``mse``), ``psnr`` (dB) and ``ssim``.
        data_range: of SSIM: 1 for data in [0, 1]; :data:`LITERATURE_RANGE` compares with published tables, whose
            figures come out higher.
        spatial_norm: errors of a pixel in place of a frame, as for WeatherBench.
        mean, std: what data were normalised with: both videos are brought back first.

    Raises:
        ValueError: shapes that differ, unknown names, a range that is not positive, frames below 7 x 7 for SSIM.
    """
    if predicted.shape != true.shape or predicted.dim() != 5:
        raise ValueError(
            "predicted and true must be (batch, frames, channels, height, width) of one shape, "
            f"got {tuple(predicted.shape)} and {tuple(true.shape)}"
        )
    if unknown := sorted(set(names) - set(NAMES)):
        raise ValueError(f"names must be of {', '.join(NAMES)}, got {unknown[0]!r}")
    if data_range <= 0:
        raise ValueError(f"data_range must be above 0, got {data_range}")
    ours, theirs = (x.double() * std + mean for x in (predicted, true))
    pixels = 1 if spatial_norm else ours[0, 0].numel()
    errors = ours - theirs
    found = {"mse": float(errors.square().mean()) * pixels, "mae": float(errors.abs().mean()) * pixels}
    found["rmse"] = found["mse"] ** 0.5
    clipped = ours.clamp(0, 1).flatten(0, 1)
    frames = theirs.flatten(0, 1)
    if "psnr" in names:
        found["psnr"] = float(-10 * (clipped - frames).square().flatten(1).mean(1).log10().mean())
    if "ssim" in names:
        found["ssim"] = float(ssim(clipped, frames, data_range=data_range).mean())
    return {name: found[name] for name in names}


def ssim(
    ours: Float[Tensor, "frames channels height width"],
    theirs: Float[Tensor, "frames channels height width"],
    *,
    data_range: float,
) -> Float[Tensor, " frames"]:
    """Structural similarity of frames in flat windows of 7 x 7 that lie inside, channels averaged: scikit-image's.

    Raises ``ValueError`` if frames are smaller than a window.
    """
    if min(ours.shape[-2:]) < WINDOW:
        raise ValueError(f"frames must be at least {WINDOW} x {WINDOW} for ssim, got {tuple(ours.shape[-2:])}")
    stacked = torch.cat([ours, theirs, ours.square(), theirs.square(), ours * theirs], 1)
    mean1, mean2, square1, square2, product = F.avg_pool2d(stacked, WINDOW, stride=1).chunk(5, dim=1)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    variances = unbiased * (square1 - mean1.square() + square2 - mean2.square())
    covariance = unbiased * (product - mean1 * mean2)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean1 * mean2 + c1) / (mean1.square() + mean2.square() + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).flatten(1).mean(1)
