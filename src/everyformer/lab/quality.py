"""How near generated images are to real ones: as sets (Fréchet distance) and one by one (MSE, PSNR, SSIM)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


def frechet_distance(ours: Float[Tensor, "samples features"], theirs: Float[Tensor, "others features"]) -> float:
    """Fréchet distance of the Gaussians that fit two sets of features (arXiv 1706.08500, equation 6).

    The figure means something beside others of the same feature network only: name the network with it.

    Raises ``ValueError`` if a set has fewer than two samples, or the numbers of features differ.
    """
    if min(len(ours), len(theirs)) < 2 or ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"ours and theirs must be (samples, features) of at least two samples and equal features, "
            f"got {tuple(ours.shape)} and {tuple(theirs.shape)}"
        )
    a, b = ours.double(), theirs.double()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float(shift + cov_a.trace() + cov_b.trace() - 2 * cross)


def likeness(
    images: Float[Tensor, "*batch channels height width"],
    truth: Float[Tensor, "*batch channels height width"],
    *,
    low: float = -1.0,
    high: float = 1.0,
) -> dict[str, float]:
    """Mean squared error, PSNR (dB) and SSIM of images whose values lie between ``low`` and ``high``.

    A video counts as its frames. The error is of values scaled to [0, 1]. Raises ``ValueError`` if shapes disagree.
    """
    if images.shape != truth.shape or images.dim() < 4:
        raise ValueError(
            f"images and truth must be (*batch, channels, height, width) of one shape, "
            f"got {tuple(images.shape)} and {tuple(truth.shape)}"
        )
    ours, theirs = (((x.flatten(0, -4).float() - low) / (high - low)).clamp(0, 1) for x in (images, truth))
    return {
        "mse": float((ours - theirs).square().mean()),
        "psnr": float(peak_signal_noise_ratio(ours, theirs, data_range=1.0)),
        "ssim": float(structural_similarity_index_measure(ours, theirs, data_range=1.0)),  # type: ignore[arg-type]
    }
