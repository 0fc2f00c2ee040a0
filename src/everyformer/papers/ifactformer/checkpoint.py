"""State dicts of huiyu-2002/IFactFormer-m (``libs/model.py``), to ours and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from everyformer.papers.ifactformer.model import IFactFormer
from everyformer.parts import checkpoints

# Our keys to theirs, one rule after the other. The first axis stands one place before the others: theirs permute first.
AXES = "xyz"
NAMES = (
    (r"^lift\.scale$", "to_in.0.weight"),
    (r"^lift\.shift$", "to_in.0.bias"),
    (r"^lift\.mix\.", "to_in.2."),
    (r"^project\.0\.", "simple_to_out.1."),
    (r"^project\.2\.", "simple_to_out.3."),
    (r"^places\.(\d+)\.frequencies$", r"encoder.layers.\1.0.0._B"),
    (r"^places\.(\d+)\.mix\.", r"encoder.layers.\1.0.1."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.\1.1."),
    (r"^(encoder\.layers\.\d+\.1)\.norm\.", r"\1.in_norm."),
    (r"^(encoder\.layers\.\d+\.1)\.value\.", r"\1.to_v."),
    (r"^(encoder\.layers\.\d+\.1)\.shared\.", r"\1.to_in."),
    (r"^(encoder\.layers\.\d+\.1)\.mix\.", r"\1.to_out.2."),
    (r"^(encoder\.layers\.\d+\.1)\.out\.", r"\1.to_out.4."),
    (r"\.axes\.(\d)\.query\.", r".low_rank_kernel_\1.to_q."),
    (r"\.axes\.(\d)\.key\.", r".low_rank_kernel_\1.to_k."),
    (r"\.axes\.(\d)\.rates$", r".low_rank_kernel_\1.pos_emb.inv_freq"),
    (r"\.axes\.0\.", ".to_0.0."),
    (r"\.axes\.(\d)\.", r".to_\1.1."),
    (r"(to_\d\.\d)\.enter\.", r"\1.to_in."),
    (r"(to_\d\.\d)\.norm\.", r"\1.out_ffn.norm."),
    (r"(to_\d\.\d)\.gated\.", r"\1.out_ffn.fn.net.0."),
    (r"(to_\d\.\d)\.leave\.", r"\1.out_ffn.fn.net.3."),
)
OPTIONS = {
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "in_time_window": "time_window",
    "dim": "dim",
    "heads": "heads",
    "dim_head": "head_dim",
    "depth": "depth",
    "n_layer": "iterations",
}
MODELS = {"IFactFormer_m": "parallel", "IFactFormer_o": "chained"}


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> IFactFormer:
    """The authors' model with the authors' weights.

    Args:
        state: the state dict.
        config: the section ``model`` of the authors' configuration; what is left out is as they released it.

    Raises:
        ValueError: a missing, unexpected or misshapen key (the first is named), an unknown option, another model.
    """
    unknown = sorted(set(config) - set(OPTIONS) - {"model"})
    if unknown:
        raise ValueError(f"config has the unknown option {unknown[0]}")
    kind = config.get("model", "IFactFormer_m")
    if kind not in MODELS:
        raise ValueError(f"config['model'] must be one of {', '.join(MODELS)}, got {kind!r}")
    # Built without storage: every tensor of it comes from the state.
    with torch.device("meta"):
        given = {OPTIONS[key]: value for key, value in config.items() if key != "model"}
        model = IFactFormer(attention=MODELS[kind], **given)  # type: ignore[arg-type]
    ours = model.state_dict()
    theirs = {key: _as_theirs(key, tensor, model.time_window) for key, tensor in ours.items()}
    checkpoints.check(state, {name: tensor.shape for name, tensor in theirs.values()})
    found = {key: _as_ours(key, state[name]).reshape(ours[key].shape) for key, (name, _) in theirs.items()}
    model.load_state_dict(found, assign=True)
    return model.requires_grad_()


def export(model: IFactFormer) -> dict[str, Tensor]:
    """The weights under the authors' names.

    Raises:
        ValueError: a model of two dimensions, of which the authors have none.
    """
    if model.dims != 3:
        raise ValueError(f"model must have dims=3 for the authors' layout, got {model.dims}")
    named = (_as_theirs(key, tensor, model.time_window) for key, tensor in model.state_dict().items())
    return {name: tensor.contiguous() for name, tensor in named}


def replay(model: IFactFormer, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' ``forward`` of ``u`` at ``pos_x``, ``pos_y``, ``pos_z``; kernels and block of the first iteration."""
    coordinates = [inputs[f"pos_{axis}"][:, 0] for axis in AXES]
    entered: Tensor = model.lift(inputs["u"]) + model.places[0](coordinates)
    block: Any = model.blocks[0]
    kernels = block.kernels(entered, coordinates)
    return {
        "y": model(inputs["u"], coordinates),
        "block": block(entered, coordinates),
        **{f"kernel_{axis}": kernel for axis, kernel in zip(AXES, kernels, strict=True)},
    }


def _as_theirs(key: str, tensor: Tensor, window: int) -> tuple[str, Tensor]:
    name = key
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    for number, axis in enumerate(AXES):
        name = re.sub(rf"(low_rank_kernel|to)_{number}\.", rf"\1_{axis}.", name)
    if key == "lift.scale":
        tensor = tensor[:, None, None, None]
    elif key == "lift.mix.weight":
        tensor = tensor.unflatten(1, (window, -1)).transpose(1, 2)[..., None]
    elif key in ("project.0.weight", "project.2.weight"):
        tensor = tensor[..., None]
    return name, tensor


def _as_ours(key: str, tensor: Tensor) -> Tensor:
    """With the axes in our order; lengths of one are still there."""
    return tensor.transpose(1, 2) if key == "lift.mix.weight" else tensor
