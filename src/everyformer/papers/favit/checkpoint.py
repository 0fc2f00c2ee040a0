"""State dicts of q2479036243/FaViT (``FaViT/classification/favit.py``), to ours and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from everyformer.papers.favit.model import VARIANTS, FaViT
from everyformer.parts import checkpoints

# The authors' options that name ours. Their networks all have biases in the linear maps.
OPTIONS = {
    "embed_dims": "dims",
    "depths": "depths",
    "num_heads": "heads",
    "mlp_ratios": "mlp_ratios",
    "sr_ratios": "reductions",
    "in_chans": "in_chans",
    "num_classes": "num_classes",
    "drop_path_rate": "drop_path_rate",
}
# Beginnings of our keys inside a stage and of theirs; {0} is the stage from 1, {1} the block, {2} the window group.
PARTS = {
    r"patches": "patch_embed{0}.proj",
    r"patch_norm": "patch_embed{0}.norm",
    r"norm": "norm{0}",
    r"blocks\.(\d+)\.norm1": "block{0}.{1}.norm1",
    r"blocks\.(\d+)\.norm2": "block{0}.{1}.norm2",
    r"blocks\.(\d+)\.mlp\.0": "block{0}.{1}.mlp.fc1",
    r"blocks\.(\d+)\.mlp\.1": "block{0}.{1}.mlp.dwconv.dwconv",
    r"blocks\.(\d+)\.mlp\.3": "block{0}.{1}.mlp.fc2",
    r"blocks\.(\d+)\.attention\.query": "block{0}.{1}.attn.q",
    r"blocks\.(\d+)\.attention\.coarse\.reduce": "block{0}.{1}.attn.sr",
    r"blocks\.(\d+)\.attention\.coarse\.norm": "block{0}.{1}.attn.norm",
    r"blocks\.(\d+)\.attention\.coarse\.key_value": "block{0}.{1}.attn.kv_g",
    r"blocks\.(\d+)\.attention\.coarse\.detail": "block{0}.{1}.attn.local_conv_g",
    r"blocks\.(\d+)\.attention\.neighbours": "block{0}.{1}.attn.kv_l.depth_conv",
    r"blocks\.(\d+)\.attention\.project": "block{0}.{1}.attn.kv_l.point_conv",
    r"blocks\.(\d+)\.attention\.groups\.(\d)\.across": "block{0}.{1}.attn.fcs.{2}",
    r"blocks\.(\d+)\.attention\.groups\.(\d)\.key_value": "block{0}.{1}.attn.single_heads.{2}",
    r"blocks\.(\d+)\.attention\.groups\.(\d)\.detail": "block{0}.{1}.attn.local_convs.{2}",
    r"blocks\.(\d+)\.attention\.out": "block{0}.{1}.attn.proj",
}


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> FaViT:
    """The network with the authors' weights.

    Args:
        state: the state dict, see :func:`everyformer.parts.checkpoints.read` for files.
        config: ``variant``, one of ``favit_b0`` to ``favit_b3``, or the authors' ``embed_dims``, ``depths``,
            ``num_heads``, ``mlp_ratios`` and ``sr_ratios``; with either, their ``in_chans``, ``num_classes`` and
            ``drop_path_rate``.

    Raises:
        ValueError: a missing, unexpected or misshapen key (the first is named, and the variant that would fit), an
            option that is unknown.
    """
    model = FaViT(**_options(config))
    ours = model.state_dict()
    names = {key: _name(key) for key in ours}
    expected = {name: _as_theirs(name, ours[key]).shape for key, name in names.items()}
    checkpoints.check(state, expected, lambda: _fitting(state))
    model.load_state_dict({key: state[name].reshape(ours[key].shape) for key, name in names.items()}, strict=True)
    return model


def export(model: FaViT) -> dict[str, Tensor]:
    """The weights under the authors' names.

    Raises:
        ValueError: a network that the authors' code cannot build.
    """
    if len(model.stages) != 4:
        raise ValueError(f"model must have four stages for the authors' code, got {len(model.stages)}")
    names = {key: _name(key) for key in model.state_dict()}
    return {names[key]: _as_theirs(names[key], tensor).contiguous() for key, tensor in model.state_dict().items()}


def replay(model: FaViT, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' outputs from ``x``: ``feature_<stage>``, ``pooled`` and ``logits``."""
    outputs = {}
    x = inputs["x"]
    for index, stage in enumerate(model.stages):
        x = stage(x)
        outputs[f"feature_{index}"] = x
    return {**outputs, "pooled": model.forward_head(x, pre_logits=True), "logits": model.forward_head(x)}


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(config) - set(OPTIONS) - {"variant"})
    if unknown:
        raise ValueError(f"config has the unknown option {unknown[0]}")
    options: dict[str, Any] = {}
    if "variant" in config:
        if config["variant"] not in VARIANTS:
            raise ValueError(f"config['variant'] must be one of {list(VARIANTS)}, got {config['variant']!r}")
        options |= VARIANTS[config["variant"]]
    options |= {OPTIONS[name]: value for name, value in config.items() if name != "variant"}
    if "dims" not in options:
        raise ValueError("config must give variant, or embed_dims, depths, num_heads, mlp_ratios and sr_ratios")
    return options


def _name(key: str) -> str:
    """The authors' name of one of our keys."""
    if match := re.fullmatch(r"stages\.(\d)\.(.*)\.(weight|bias)", key):
        for part, theirs in PARTS.items():
            if inside := re.fullmatch(part, match[2]):
                return f"{theirs.format(int(match[1]) + 1, *inside.groups())}.{match[3]}"
    return key  # the head


def _as_theirs(name: str, tensor: Tensor) -> Tensor:
    """Their projection is a convolution of kernel 1."""
    return tensor[:, :, None, None] if name.endswith("point_conv.weight") else tensor


def _fitting(state: Mapping[str, Tensor]) -> list[str]:
    """The variants that have just the state's blocks, at their widths."""
    found = {key: tensor.shape[0] for key, tensor in state.items() if re.fullmatch(r"block\d\.\d+\.norm1\.weight", key)}
    return [name for name, settings in VARIANTS.items() if found == _blocks(settings["dims"], settings["depths"])]


def _blocks(dims: Sequence[int], depths: Sequence[int]) -> dict[str, int]:
    """The first norm of every block under the authors' names, with its width."""
    return {
        f"block{stage}.{block}.norm1.weight": dim
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True), start=1)
        for block in range(depth)
    }
