"""State dicts of our FMViT, of the branches or folded. The authors published neither code nor weights to convert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from everyformer.papers.fmvit.model import VARIANTS, FMViT
from everyformer.parts import checkpoints

FOLDED = "stem.conv1.conv.weight"  # is in a state dict after folding, and only then
FIRST = "stem.conv1.branches.0.0.weight"


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> FMViT:
    """The network with these weights; a folded state makes a folded network.

    Args:
        state: the state dict, from :func:`everyformer.parts.checkpoints.read` where it is in a file.
        config: the options of :class:`~everyformer.papers.fmvit.model.FMViT`, or ``variant`` and options besides.

    Raises:
        ValueError: a missing, unexpected or misshapen key (the first is named, and the variant that would fit), an
            unknown variant.
    """
    options = dict(config)
    variant = options.pop("variant", None)
    if variant is not None:
        if variant not in VARIANTS:
            raise ValueError(f"config['variant'] must be one of {list(VARIANTS)}, got {variant!r}")
        options = VARIANTS[variant] | options
    model = FMViT(**options)
    if FOLDED in state:
        model.reparameterize()
    checkpoints.check(state, {key: tensor.shape for key, tensor in model.state_dict().items()}, lambda: _fitting(state))
    model.load_state_dict(state, strict=True)
    return model


def export(model: FMViT) -> dict[str, Tensor]:
    """The weights, for ``safetensors.torch.save_file``."""
    return {key: tensor.contiguous() for key, tensor in model.state_dict().items()}


def _fitting(state: Mapping[str, Tensor]) -> list[str]:
    """The variants that have just these keys and shapes."""
    return list(_fits(state))


def _fits(state: Mapping[str, Tensor]) -> Iterator[str]:
    first, head = state.get(FOLDED, state.get(FIRST)), state.get("head.weight")
    if first is None or first.ndim != 4:
        return
    found = {key: tensor.shape for key, tensor in state.items()}
    for variant, settings in VARIANTS.items():
        if settings["dims"][0] != 2 * len(first):
            continue  # building a network takes a while
        with torch.device("meta"):
            model = FMViT(first.shape[1], 0 if head is None else len(head), **settings)
            if FOLDED in state:
                model.reparameterize()
        if found == {key: tensor.shape for key, tensor in model.state_dict().items()}:
            yield variant
