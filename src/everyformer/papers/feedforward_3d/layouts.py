"""How naver/dust3r, facebookresearch/vggt and timm name and shape what our modules hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Rules = Sequence[tuple[str, "str | Callable[[re.Match[str]], str]"]]

# Our keys to theirs, one rule after the other.
BLOCKS: Rules = (
    (r"\.attention\.out\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.cross\.out\.", ".cross_attn.proj."),
    (r"\.cross\.(query|key|value)\.", lambda found: f".cross_attn.proj{found[1][0]}."),
    (r"\.norm_other\.", ".norm_y."),
    (r"(^|\.)(mlp|camera\.out)\.0\.", r"\1\2.fc1."),
    (r"(^|\.)(mlp|camera\.out)\.2\.", r"\1\2.fc2."),
    (r"\.scale([12])\.", r".ls\1."),
)
DENSE: Rules = (
    (r"\.level\.(\d)\.", lambda found: f".scratch.layer{int(found[1]) + 1}_rn."),
    (r"\.fuse\.(\d)\.", lambda found: f".scratch.refinenet{int(found[1]) + 1}."),
    (r"(refinenet\d)\.skip\.", r"\1.resConfUnit1."),
    (r"(refinenet\d)\.unit\.", r"\1.resConfUnit2."),
    (r"(refinenet\d)\.out\.", r"\1.out_conv."),
)
PAIR: Rules = (
    *BLOCKS,
    (r"^patches\.", "patch_embed.proj."),
    (r"^encoder\.", "enc_blocks."),
    (r"^encoder_norm\.", "enc_norm."),
    (r"^embed\.", "decoder_embed."),
    (r"^decoder1\.", "dec_blocks."),
    (r"^decoder2\.", "dec_blocks2."),
    (r"^decoder_norm\.", "dec_norm."),
    (r"^head(\d)\.(?!proj\.)", r"downstream_head\1.dpt."),
    (r"^head(\d)\.proj\.", r"downstream_head\1.proj."),
    *DENSE,
    (r"\.project\.(\d)\.", r".act_postprocess.\1.0."),
    (r"\.rescale\.(\d)\.", r".act_postprocess.\1.1."),
    (r"\.out(\d)\.", lambda found: f".head.{2 * int(found[1]) - 2}."),
)
DINO: tuple[tuple[str, str], ...] = (
    (r"^patches\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^positions$", "pos_embed"),
)
MULTI: Rules = (
    *BLOCKS,
    (r"^encoder\.(?=weight$|bias$)", "aggregator.patch_embed.proj."),
    *((pattern.replace("^", r"^encoder\."), "aggregator.patch_embed." + name) for pattern, name in DINO),
    (r"^encoder\.", "aggregator.patch_embed."),
    (r"^camera_token$", "aggregator.camera_token"),
    (r"^register_tokens$", "aggregator.register_token"),
    (r"^frame\.", "aggregator.frame_blocks."),
    (r"^all_views\.", "aggregator.global_blocks."),
    (r"^camera\.blocks\.", "camera_head.trunk."),
    (r"^camera\.norm\.", "camera_head.trunk_norm."),
    (r"^camera\.start$", "camera_head.empty_pose_tokens"),
    (r"^camera\.embed\.", "camera_head.embed_pose."),
    (r"^camera\.adaptive\.", "camera_head.poseLN_modulation."),
    (r"^camera\.out\.", "camera_head.pose_branch."),
    (r"^camera\.", "camera_head."),
    (r"^(point|depth)\.", r"\1_head."),
    *DENSE,
    (r"\.project\.", ".projects."),
    (r"\.rescale\.", ".resize_layers."),
    (r"\.out1\.", ".scratch.output_conv1."),
    (r"\.out2\.", ".scratch.output_conv2.0."),
    (r"\.out3\.", ".scratch.output_conv2.2."),
)


def renamed(key: str, rules: Rules) -> str:
    """Our key as theirs."""
    for pattern, name in rules:
        key = re.sub(pattern, name, key)
    return key


def twin(key: str) -> str | None:
    """The second name of weights that DUSt3R's files hold twice."""
    found = re.fullmatch(r"(downstream_head.*\.scratch\.)layer(\d)_rn(\.weight)", key)
    return f"{found[1]}layer_rn.{int(found[2]) - 1}{found[3]}" if found else None


def shape(state: Mapping[str, Tensor], key: str, rank: int) -> torch.Size:
    """Of a key that must be there. Raises ``ValueError`` that names it."""
    if key not in state:
        raise ValueError(f"state lacks the key {key}")
    if state[key].ndim != rank:
        raise ValueError(f"state key {key} must have {rank} dimensions, got shape {tuple(state[key].shape)}")
    return state[key].shape


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks ``prefix.0``, ``prefix.1``, ... there are."""
    numbers = {int(found[1]) for key in state if (found := re.match(re.escape(prefix) + r"\.(\d+)\.", key))}
    return max(numbers, default=-1) + 1


def pair_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of a ``PairModel`` that a state of DUSt3R fits."""
    dim, _, patch, _ = shape(state, "patch_embed.proj.weight", 4)
    decoder_dim = shape(state, "decoder_embed.weight", 2)[0]
    sizes: dict[str, Any] = {
        "patch": patch,
        "dim": dim,
        "depth": count(state, "enc_blocks"),
        "heads": max(1, dim // 64),
        "decoder_dim": decoder_dim,
        "decoder_depth": count(state, "dec_blocks"),
        "decoder_heads": max(1, decoder_dim // 64),
    }
    dpt = "downstream_head1.dpt."
    if any(key.startswith(dpt) for key in state):
        sizes |= {
            "head": "dpt",
            "features": shape(state, dpt + "scratch.refinenet1.out_conv.weight", 4)[0],
            "layer_dims": tuple(shape(state, f"{dpt}act_postprocess.{level}.0.weight", 4)[0] for level in range(4)),
            "last": shape(state, dpt + "head.2.weight", 4)[0],
        }
    return sizes


def dino_sizes(state: Mapping[str, Tensor], prefix: str) -> dict[str, int]:
    """Width and patch of an encoder."""
    dim, _, patch, _ = shape(state, prefix + "patch_embed.proj.weight", 4)
    return {"dim": dim, "patch": patch}


def multi_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of a ``MultiViewModel`` that a state of VGGT fits."""
    encoder, point = "aggregator.patch_embed.", "point_head."
    sizes: dict[str, Any] = {"encoder_depth": count(state, encoder + "blocks")}
    if sizes["encoder_depth"]:
        sizes |= dino_sizes(state, encoder)
        sizes["encoder_registers"] = shape(state, encoder + "register_tokens", 3)[1]
        sizes["image_size"] = sizes["patch"] * round((shape(state, encoder + "pos_embed", 3)[1] - 1) ** 0.5)
    else:
        dim, _, patch, _ = shape(state, encoder + "proj.weight", 4)
        sizes |= {"dim": dim, "patch": patch, "image_size": patch}
    norm = "aggregator.frame_blocks.0.attn.q_norm.weight"
    head_dim = shape(state, norm, 1)[0] if norm in state else 64
    return sizes | {
        "depth": count(state, "aggregator.frame_blocks"),
        "heads": max(1, sizes["dim"] // head_dim),
        "registers": shape(state, "aggregator.register_token", 4)[2],
        "qk_norm": norm in state,
        "camera_depth": count(state, "camera_head.trunk"),
        "features": shape(state, point + "scratch.refinenet1.out_conv.weight", 4)[0],
        "layer_dims": tuple(shape(state, f"{point}projects.{level}.weight", 4)[0] for level in range(4)),
        "last": shape(state, point + "scratch.output_conv2.0.weight", 4)[0],
    }
