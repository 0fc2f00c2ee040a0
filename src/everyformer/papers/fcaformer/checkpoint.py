"""State dicts of hkzhang91/FcaFormer (``image_classification/models/fcaformer.py``), to ours and back.

The authors publish the hybrid models only; the plain one has no layout of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from everyformer.papers.fcaformer.model import VARIANTS, ConvStage, FcaFormer
from everyformer.parts import checkpoints

# The authors' options that name ours; the rest of theirs are the same or fixed.
OPTIONS = {"embed_dims": "dims", "depths": "depths", "num_heads": "heads", "cab_max_d": "memory"}
SHARED = {"img_size", "in_chans", "num_classes", "mlp_ratio", "drop_path_rate"}
# Beginnings of our keys inside a stage and of theirs.
PARTS = {
    "attention.qkv": "qkv",
    "attention.proj": "proj",
    "attention.bias": "attention_biases",
    "attention.cross_scale": "s_scale_factors",
    "attention.cross_norm": "s_norm",
    "attention.cross_bias": "s_token_bias",
    "merge": "dw_conv",
    "enhance.0": "local_conv.c",
    "enhance.1": "local_conv.bn",
    "gamma1": "gamma_1",
    "gamma2": "gamma_2",
    "norm1": "norm1",
    "mlp.0": "norm2",
    "mlp.1": "mlp.norm",
    "mlp.2": "mlp.fc1",
    "mlp.4": "mlp.fc2",
}
CONV_PARTS = {"conv": "dwconv", "mlp.0": "norm", "mlp.1": "pwconv1", "mlp.3": "pwconv2", "gamma": "gamma"}
DOWNSAMPLE = {"0": "conv1", "2": "conv2", "4": "conv3"}
NORMED = {"0": "c", "1": "bn"}


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> FcaFormer:
    """The network with the authors' weights.

    Args:
        state: the state dict.
        config: ``variant``, one of ``fcaformer_l1`` to ``fcaformer_l4``, or the authors' ``embed_dims``, ``depths`` and
            ``num_heads``; with either, their ``img_size``, ``in_chans``, ``num_classes``, ``mlp_ratio``,
            ``drop_path_rate`` and ``cab_max_d``.

    Raises:
        ValueError: a missing, unexpected or misshapen key (the first is named, and the variant that would fit), an
            option that is unknown.
    """
    model = FcaFormer(**_options(config))
    ours = model.state_dict()
    names = {key: _name(model, key) for key in ours}
    expected = {name: _as_theirs(name, ours[key]).shape for key, name in names.items()}
    checkpoints.check(state, expected, lambda: [name for name in _fitting(state) if name != config.get("variant")])
    model.load_state_dict({key: state[name].reshape(ours[key].shape) for key, name in names.items()}, strict=True)
    return model


def export(model: FcaFormer) -> dict[str, Tensor]:
    """The weights under the authors' names.

    Raises:
        ValueError: a network that the authors' code cannot build.
    """
    state = {}
    for key, tensor in model.state_dict().items():
        name = _name(model, key)
        state[name] = _as_theirs(name, tensor).contiguous()
    return state


def replay(model: FcaFormer, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' outputs from ``x``: ``feature_<stage>``, ``pooled`` and ``logits``."""
    outputs = {}
    x = model.stem(inputs["x"])
    for index, stage in enumerate(model.stages):
        x = stage(x)
        outputs[f"feature_{index}"] = x
    return {**outputs, "pooled": x.mean((2, 3)), "logits": model.forward_head(x)}


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(config) - set(OPTIONS) - SHARED - {"variant"})
    if unknown:
        raise ValueError(f"config has the unknown option {unknown[0]}")
    options: dict[str, Any] = {}
    if "variant" in config:
        hybrids = [name for name in VARIANTS if not VARIANTS[name].get("patches")]
        if config["variant"] not in hybrids:
            raise ValueError(f"config['variant'] must be one of {hybrids}, got {config['variant']!r}")
        options |= VARIANTS[config["variant"]]
    options |= {OPTIONS.get(name, name): value for name, value in config.items() if name != "variant"}
    if "dims" not in options:
        raise ValueError("config must give variant, or embed_dims, depths and num_heads")
    if isinstance(options.get("img_size"), list):
        options["img_size"] = tuple(options["img_size"])
    return options


def _name(model: FcaFormer, key: str) -> str:
    """The authors' name of one of our keys."""
    if len(model.stages) != 4 or not isinstance(model.stem.conv, torch.nn.Sequential):
        raise ValueError("model must be a hybrid of four stages: the authors' code has no other")
    if match := re.fullmatch(r"stem\.conv\.(\d)\.(\d)\.(.*)", key):
        return f"patch_embed.seq.{match[1]}.{NORMED[match[2]]}.{match[3]}"
    if match := re.fullmatch(r"stages\.(\d)\.downsample\.(\d)\.(\d)\.(.*)", key):
        # Theirs is the end of the stage before.
        return f"layer_{int(match[1]) - 1}.downsample.{DOWNSAMPLE[match[2]]}.{NORMED[match[3]]}.{match[4]}"
    if match := re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(.*)", key):
        parts = CONV_PARTS if isinstance(model.stages[int(match[1])], ConvStage) else PARTS
        ours = next(part for part in parts if match[3] == part or match[3].startswith(f"{part}."))
        return f"layer_{match[1]}.blocks.{match[2]}.{parts[ours]}{match[3].removeprefix(ours)}"
    return re.sub(r"^norm\.", "norm_head.", key)


def _as_theirs(name: str, tensor: Tensor) -> Tensor:
    """Scales and biases of cross tokens have axes of length one in the authors' layout."""
    return tensor[None, :, None] if name.endswith((".s_scale_factors", ".s_token_bias")) else tensor


def _fitting(state: Mapping[str, Tensor]) -> list[str]:
    """The variants whose widths and depths the state has."""
    blocks = [re.match(r"layer_(\d)\.blocks\.(\d+)\.gamma(?:_1)?$", key) for key in state]
    depths: dict[str, int] = {}
    dims: dict[str, int] = {}
    for match in filter(None, blocks):
        depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
        dims[match[1]] = state[match[0]].shape[0]
    sizes = [found[stage] for found in (dims, depths) for stage in sorted(found)]
    return [name for name, settings in VARIANTS.items() if [*settings["dims"], *settings["depths"]] == sizes]
