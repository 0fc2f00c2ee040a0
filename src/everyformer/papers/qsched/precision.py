"""Weights and activations in few bits by torchao: what Q-Sched is put to work on (arXiv 2509.01624, section 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

WEIGHTS = {bits: getattr(torch, f"int{bits}") for bits in range(2, 9)}
ACTIVATIONS = (8, 16)


def quantise(
    module: nn.Module,
    *,
    weights: int = 4,
    activations: int = 8,
    group: int = 32,
    keep: Callable[[str], bool] = lambda name: False,
) -> nn.Module:
    """Quantise the linear layers of ``module`` in place and return it: W4A8 unless told otherwise.

    Weights are symmetric in groups of ``group`` inputs; activations in 8 bits are asymmetric per token and scaled as
    they come, in 16 bits they stay as they are. Runs on the CPU too, where torchao holds the weights as integers and
    multiplies in floating point. Layers whose inputs ``group`` does not divide are left alone, and so are those whose
    name ``keep`` says to keep.

    Raises:
        ValueError: bits that are not supported, or no layer was quantised.
    """
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, PerGroup, quantize_

    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {sorted(WEIGHTS)} bits, got {weights}")
    if activations not in ACTIVATIONS:
        raise ValueError(f"activations must be one of {ACTIVATIONS} bits, got {activations}")
    names = {
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and layer.in_features % group == 0 and not keep(name)
    }
    if not names:
        raise ValueError(f"module must hold linear layers whose inputs are divisible by group={group}, got none")
    config = (
        Int8DynamicActivationIntxWeightConfig(weight_dtype=WEIGHTS[weights], weight_granularity=PerGroup(group))
        if activations == 8
        else IntxWeightOnlyConfig(weight_dtype=WEIGHTS[weights], granularity=PerGroup(group))
    )
    quantize_(module, config, filter_fn=lambda _, name: name in names)
    return module
