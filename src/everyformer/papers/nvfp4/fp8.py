"""The baseline: eight-bit training with one scale a tensor, taken from the tensor itself ("current scaling").

Weights and inputs are in E4M3, gradients in E5M2, as is usual in the authors' TransformerEngine. Products are emulated
in float32, as those in NVFP4 are.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.nvfp4.method import Skip, Treatment, chosen, swap


def convert(model: nn.Module, *, keep_high_precision: float = 0.16, skip: Skip | None = None) -> nn.Module:
    """Let the layers that ``nvfp4.convert`` would choose compute in FP8, in place; returns the model."""
    for module in chosen(model, keep_high_precision, skip).values():
        swap(module, _FP8)
    return model


def quantise(x: Float[Tensor, "*shape"], dtype: torch.dtype) -> tuple[Float[Tensor, "*shape"], Float[Tensor, ""]]:
    """Values in an eight-bit format, the largest magnitude at its largest number, and the scale to multiply them by."""
    scale = (x.abs().amax().float() / torch.finfo(dtype).max).clamp(min=2.0**-120)
    return (x.float() / scale).to(dtype), scale


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        (x8, x_scale), (w8, w_scale) = (quantise(part, torch.float8_e4m3fn) for part in (x, weight))
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        ctx.dtypes = x.dtype, weight.dtype
        return (x8.float() @ w8.float().mT * (x_scale * w_scale)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        g8, g_scale = quantise(grad, torch.float8_e5m2)
        d_x = g8.float() @ w8.float() * (g_scale * w_scale)
        d_weight = g8.float().mT @ x8.float() * (g_scale * x_scale)
        return d_x.to(ctx.dtypes[0]), d_weight.to(ctx.dtypes[1])


class _FP8(Treatment):
    """A linear layer's forward in FP8."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        weight = self.weight if isinstance(self, nn.Linear) else self.weight.mT
        out = _Linear.apply(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], len(weight))
        return out if self.bias is None else out + self.bias.to(out.dtype)
