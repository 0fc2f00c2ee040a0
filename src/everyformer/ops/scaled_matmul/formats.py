"""The number formats, and rounding to them with one scale for a whole tensor.

One scale, not one for each row: a tensor rounded once then serves as it is and transposed, so that what a product of the
forward pass has read can be kept for both products of the backward pass.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

# Format: the largest value, and the type that holds the values. FP6 is e3m2, and every e3m2 value is one of e4m3 too.
FORMATS = {
    "int8": (127.0, torch.int8),
    "fp8": (448.0, torch.float8_e4m3fn),
    "fp6": (28.0, torch.float8_e4m3fn),
}
WITHOUT_FP8 = ("mps",)  # devices that have no float8 tensors


def check_format(format: str, device: torch.device) -> None:
    """Whether tensors of a format can be held on a device.

    Raises:
        ValueError: they cannot, or there is no such format; what is supported there is named.
    """
    supported = [name for name in FORMATS if name == "int8" or device.type not in WITHOUT_FP8]
    if format not in supported:
        raise ValueError(f"format must be one of {', '.join(supported)} on {device.type}, got {format!r}")


def largest(x: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The largest magnitude, in float32; 0 of nothing."""
    return x.detach().abs().amax().float() if x.numel() else torch.zeros((), device=x.device)


def quantise(
    x: Float[Tensor, "*shape"], format: str, *, amax: Float[Tensor, ""] | None = None
) -> tuple[Shaped[Tensor, "*shape"], Float[Tensor, ""]]:
    """Values and the scale that they are to be multiplied with, rounded to the nearest, ties to even.

    Args:
        x: finite values.
        format: ``"int8"`` (-127 to 127), ``"fp8"`` (e4m3) or ``"fp6"`` (e3m2, held in an e4m3 tensor).
        amax: what the format's largest value stands for; by default the largest magnitude of ``x``.

    Raises:
        ValueError: a format that is unknown, or that the device of ``x`` cannot hold.
        TypeError: ``x`` holds no floating-point values.
    """
    check_format(format, x.device)
    if not x.is_floating_point():
        raise TypeError(f"x must be of a floating-point type, got {x.dtype}")
    limit, dtype = FORMATS[format]
    scale = (largest(x) if amax is None else amax) / limit
    scale = torch.where(scale == 0, 1.0, scale)  # of zeros alone
    scaled = (x.float() / scale).clamp(-limit, limit)
    if format == "int8":
        scaled = scaled.round()
    elif format == "fp6":
        scaled = _to_e3m2(scaled)
    return scaled.to(dtype), scale


def _to_e3m2(x: Tensor) -> Tensor:
    """Rounded to two bits of mantissa; below 1/4 the steps stay those of the smallest normal numbers, 1/16."""
    exponent = torch.frexp(x).exponent - 1
    step = torch.exp2(exponent.clamp(min=-2).float() - 2)
    return (x / step).round() * step
