"""State dicts of naver/dust3r and facebookresearch/vggt, to ours and back; DINOv2's weights from timm.

Sizes are read from the shapes. What shapes cannot tell is the number of heads, where it is not a head per 64 channels
(DUSt3R, DINOv2) or per layer norm of queries (VGGT), and the levels that VGGT's dense heads read: that is ``config``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everyformer.papers.feedforward_3d.blocks import Dino
from everyformer.papers.feedforward_3d.cameras import pose_decode, pose_encode, unproject
from everyformer.papers.feedforward_3d.focal import focal_from_pointmap
from everyformer.papers.feedforward_3d.layouts import (
    BLOCKS,
    DINO,
    MULTI,
    PAIR,
    count,
    dino_sizes,
    multi_sizes,
    pair_sizes,
    renamed,
    shape,
    twin,
)
from everyformer.papers.feedforward_3d.losses import pair_loss, scale_shift_error
from everyformer.papers.feedforward_3d.multiview import MEAN, STD, MultiViewModel, channels
from everyformer.papers.feedforward_3d.pair import PairModel
from everyformer.parts import checkpoints

OPTIONS = {
    "pair": {"enc_num_heads": "heads", "dec_num_heads": "decoder_heads"},
    "multi": {"num_heads": "heads", "camera_num_heads": "camera_heads", "dpt_layers": "layers"},
}
TRACKS = "track_head."


def load_file(path: str | Path, config: Mapping[str, Any] | None = None) -> PairModel | MultiViewModel:
    """The model of a published file, either family, read without unpickling; the head for tracks is left out."""
    state = checkpoints.read(path)
    return load({key: tensor for key, tensor in state.items() if not key.startswith(TRACKS)}, config or {})


def load(state: Mapping[str, Tensor], config: Mapping[str, Any], *, tracks: bool = False) -> PairModel | MultiViewModel:
    """The authors' model with the authors' weights; the family is told by the keys.

    DUSt3R: a state without ``dec_blocks2`` (CroCo's) fills it from ``dec_blocks``; keys of ``prediction_head`` are ignored.

    Args:
        state: the state dict.
        config: ``enc_num_heads``, ``dec_num_heads`` for DUSt3R; ``num_heads``, ``camera_num_heads`` (16), ``dpt_layers``
            (4, 11, 17, 23) for VGGT.
        tracks: keep the weights of VGGT's head for tracks, for :func:`export`; nothing here uses them. Otherwise they
            are unexpected keys.

    Raises:
        ValueError: a missing, unexpected or misshapen key (the first is named), an unknown option.
    """
    multi = any(key.startswith("aggregator.") for key in state)
    options = OPTIONS["multi" if multi else "pair"]
    unknown = sorted(set(config) - set(options))
    if unknown:
        raise ValueError(f"config has the unknown option {unknown[0]}; accepted are {', '.join(options)}")
    given = {options[key]: value for key, value in config.items()}
    state = dict(state)
    kept: dict[str, Tensor] = {}
    if multi and tracks:
        kept = {key: state.pop(key) for key in list(state) if key.startswith(TRACKS)}
    if not multi:
        state = _with_second_decoder(state)
    # Built without storage: every tensor of it comes from the state.
    with torch.device("meta"):
        model: PairModel | MultiViewModel = (
            MultiViewModel(**{**multi_sizes(state), **given}) if multi else PairModel(**{**pair_sizes(state), **given})
        )
    names = _names(model)
    expected = {names[key]: tensor.shape for key, tensor in model.state_dict().items()}
    twins = _twins(expected)
    checkpoints.check(state, expected | {other: expected[key] for key, other in twins.items()})
    for key, other in twins.items():
        if not torch.equal(state[key], state[other]):
            raise ValueError(f"state keys {key} and {other} must hold the same weights")
    model.load_state_dict({key: state[name].clone() for key, name in names.items()}, assign=True)
    if isinstance(model, MultiViewModel):
        # Not in checkpoints.
        model.mean, model.std = channels(MEAN), channels(STD)
        model.track_head = {key: tensor.clone() for key, tensor in kept.items()}
    return model


def export(model: PairModel | MultiViewModel) -> dict[str, Tensor]:
    """The weights under the authors' names."""
    ours = model.state_dict()
    state = {name: ours[key] for key, name in _names(model).items()}
    if isinstance(model, MultiViewModel):
        return state | model.track_head
    return state | {other: state[key].clone() for key, other in _twins(state).items()}


def load_dino(state: Mapping[str, Tensor], *, heads: int | None = None) -> Dino:
    """A DINOv2 encoder with registers from timm's weights (``vit_large_patch14_reg4_dinov2`` and its like).

    Put it in the place of ``encoder`` of a :class:`MultiViewModel` of its width. ``heads`` is a head per 64 channels
    unless given. Raises ``ValueError`` naming the first key that is missing, unexpected or misshapen.
    """
    sizes = dino_sizes(state, "")
    dim = sizes["dim"]
    registers = shape(state, "reg_token", 3)[1]
    with torch.device("meta"):
        model = Dino(
            image_size=sizes["patch"] * round(shape(state, "pos_embed", 3)[1] ** 0.5), patch=sizes["patch"], dim=dim,
            depth=count(state, "blocks"), heads=heads or dim // 64, registers=registers,
        )  # fmt: skip
    names = {key: renamed(key, (*BLOCKS, *DINO)) for key in model.state_dict() if key != "mask_token"}
    names["register_tokens"] = "reg_token"
    # timm has no position for the class token: it is in the token.
    shapes = {names[key]: model.state_dict()[key].shape for key in names}
    shapes["pos_embed"] = torch.Size((1, shapes["pos_embed"][1] - 1, dim))
    checkpoints.check(state, shapes)
    ours = {key: state[name].clone() for key, name in names.items()}
    ours["positions"] = torch.cat([torch.zeros(1, 1, dim).to(ours["positions"]), ours["positions"]], dim=1)
    ours["mask_token"] = torch.zeros(1, dim)
    model.load_state_dict(ours, assign=True)
    return model


def replay(
    model: PairModel | MultiViewModel, inputs: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The authors' forward pass and gradients; for pairs their losses and focal lengths, for views their cameras."""
    inputs = dict(inputs)
    return _replay_views(model, inputs) if isinstance(model, MultiViewModel) else _replay_pair(model, inputs)


def _replay_pair(model: PairModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    images = [inputs[name].clone().requires_grad_() for name in ("img1", "img2")]  # from -1 to 1
    first, second = model(*((image + 1) / 2 for image in images))
    score = ((first.points + second.points) * inputs["cotangent"]).sum() + first.confidence.sum()
    gradients = torch.autograd.grad(score, images)
    to_first = torch.linalg.inv(inputs["gt_pose1"])
    truth = [
        (inputs[name].flatten(1, 2) @ to_first[:, :3, :3].mT + to_first[:, None, :3, 3]).view_as(inputs[name])
        for name in ("gt_pts1", "gt_pts2")
    ]
    masks = [inputs["gt_mask1"], inputs["gt_mask2"]]
    points, principal = inputs["focal_pts"], inputs["focal_pp"]
    with torch.no_grad():
        return {
            "enc1": model.encode((images[0] + 1) / 2),
            "pts1": first.points,
            "conf1": first.confidence,
            "pts2": second.points,
            "conf2": second.confidence,
            "grad1": gradients[0],
            "grad2": gradients[1],
            "conf_loss": pair_loss(first, second, *truth, *masks),
            "scale_shift_inv_loss": scale_shift_error(first, second, *truth, *masks),
            "focal_weiszfeld": focal_from_pointmap(points, principal),
            "focal_median": focal_from_pointmap(points, principal, method="median"),
        }


def _replay_views(model: MultiViewModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    images = inputs["images"].clone().requires_grad_()
    found = model(images)
    score = (found.points * inputs["cotangent"]).sum() + found.depth.sum() + found.pose_codes[-1].sum()
    (gradient,) = torch.autograd.grad(score, images)
    size = (images.shape[-2], images.shape[-1])
    codes = pose_encode(inputs["extrinsics"], inputs["intrinsics"], size)
    extrinsics, intrinsics = pose_decode(codes, size)
    with torch.no_grad():
        return {
            "tokens_last": list(model.mix(images).values())[-1],
            "pose_enc_first": found.pose_codes[0],
            "pose_enc": found.pose_codes[-1],
            "depth": found.depth[..., None],
            "depth_conf": found.depth_confidence,
            "points": found.points,
            "points_conf": found.points_confidence,
            "grad": gradient,
            "extrinsics_round_trip": extrinsics,
            "intrinsics_round_trip": intrinsics,
            "pose_enc_of_cameras": codes,
            "unprojected_depth_batch0": unproject(found.depth, inputs["extrinsics"], inputs["intrinsics"])[0],
        }


def _names(model: nn.Module) -> dict[str, str]:
    rules = MULTI if isinstance(model, MultiViewModel) else PAIR
    return {key: renamed(key, rules) for key in model.state_dict()}


def _twins(keys: Iterable[str]) -> dict[str, str]:
    """The second name that DUSt3R's files have for some weights."""
    return {key: other for key in keys if (other := twin(key))}


def _with_second_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {key: tensor for key, tensor in state.items() if not key.startswith("prediction_head.")}
    if any(key.startswith("dec_blocks2.") for key in state):
        return state
    first = {key: tensor for key, tensor in state.items() if key.startswith("dec_blocks.")}
    return state | {key.replace("dec_blocks.", "dec_blocks2."): tensor for key, tensor in first.items()}
